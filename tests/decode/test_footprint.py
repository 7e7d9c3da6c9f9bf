"""How many prompts go together: no more than fit, and never fewer than one."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tiny_models import FAMILIES, tiny_model

from dist.decode.batch_size import (
    MOST_ROWS_CPU,
    MOST_ROWS_GPU,
    PASS_TOKENS_CPU,
    Storage,
    batch_storage,
    conversation_storage,
    row_bytes,
    rows_together,
    storage_bytes,
)
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.protocol import Control, Turn
from dist.settings import GenerationSettings

PLENTY = 1 << 50


@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_takes_no_more_than_it_is_said_to(family):
    engine = Engine(tiny_model(family), SoloGroup(torch.device("cpu")), max_positions=4096)
    settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=40)
    turn = Turn(prompts=tuple((5 + row,) * 300 for row in range(4)), settings=settings, placeholder=2, stop_ids=())
    for _ in engine.answer(turn, lambda: Control(settings=settings)):
        pass
    layers = engine.forwards.batch.cache.layers.layers
    kept = sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in (layer.keys, layer.values))
    # 340 tokens and two blocks of 8, in a power of two.
    assert kept == 4 * 2 * len(layers) * 2 * 8 * 512 * 4
    # Keys and values are most of it.
    assert kept / 4 < row_bytes(tiny_model(family), 340, 8) < 2 * kept / 4


def test_what_a_turn_needs_is_known_before_any_memory_is_asked_for():
    model = tiny_model()
    settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=40, max_length=600)
    longer = GenerationSettings(add_eos_length=15, refine_iter="auto", max_new_tokens=300, max_length=600)
    turn = Turn(
        prompts=((5,) * 300, (6,) * 200, (7,)),
        settings=settings,
        placeholder=2,
        stop_ids=(),
        row_settings=(settings, longer, settings),
        together=2,
    )
    # 500 tokens and two blocks of 16, in a power of two; the end of a conversation, and two blocks of 16.
    batch = batch_storage(model, turn, None)
    assert batch == Storage(rows=2, capacity=1024, row_bytes=row_bytes(model, 500, 16))
    alone = conversation_storage(model, turn, None)
    assert alone == Storage(rows=1, capacity=768, row_bytes=storage_bytes(model, 768))
    assert conversation_storage(model, turn, 400).capacity == 512
    assert batch.within(2 * batch.row_bytes - 1) == dataclasses.replace(batch, rows=1)
    assert batch.within(0).rows == 0 and batch.within(1 << 40) == batch
    assert batch.holds(alone) and batch.holds(batch) and not alone.holds(batch)
    assert not dataclasses.replace(batch, rows=3, capacity=512).holds(batch)


def test_memory_decides_where_it_is_short():
    model = tiny_model()
    one = row_bytes(model, 1000, 8)
    assert rows_together(model, 1000, 8, 2 * 5 * one, gpu=True) == 5
    assert rows_together(model, 1000, 8, 2 * 6 * one - 2, gpu=True) == 5
    assert rows_together(model, 1000, 8, 0, gpu=True) == 1
    assert rows_together(model, 1000, 8, -one, gpu=False) == 1


def test_where_memory_is_plenty_the_device_and_the_block_decide():
    model = tiny_model()
    assert rows_together(model, 100, 8, PLENTY, gpu=False) == MOST_ROWS_CPU
    assert rows_together(model, 100, 8, PLENTY, gpu=True) == MOST_ROWS_GPU
    assert rows_together(model, 100, 128, PLENTY, gpu=False) == PASS_TOKENS_CPU // 128
    assert rows_together(model, 100, 4096, PLENTY, gpu=False) == 1


def test_longer_prompts_and_blocks_and_wider_types_take_more():
    model = copy.deepcopy(tiny_model()).bfloat16()
    least = row_bytes(model, 300, 8)
    assert row_bytes(model, 600, 8) > least
    assert row_bytes(model, 300, 128) > least
    assert row_bytes(tiny_model(), 300, 8) > least


def test_a_rank_that_holds_half_of_the_heads_needs_half_the_storage():
    model = copy.deepcopy(tiny_model())
    whole = storage_bytes(model, 100)
    for layer in model.model.layers:
        layer.self_attn.q_proj.out_features //= 2
        layer.self_attn.k_proj.out_features //= 2
    assert whole == 2 * 2 * 2 * 8 * 100 * 4
    assert storage_bytes(model, 100) == whole // 2


def test_the_engine_asks_for_its_own_memory(monkeypatch):
    engine = Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=512)
    assert engine.rows_that_fit(100, 8) == MOST_ROWS_CPU
    one = row_bytes(tiny_model(), 100, 8)
    monkeypatch.setattr("dist.decode.engine.free_bytes", lambda device: 6 * one)
    assert engine.rows_that_fit(100, 8) == 3
