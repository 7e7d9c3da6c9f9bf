"""A conversation on a real engine and tokenizer, with a scripted user in place of the terminal."""

from __future__ import annotations

import pytest
import torch
from checkpoints import CASES, build_model
from hold import START, holder

from chat.text.stops import stop_finder
from chat.text.tokenizer import load_tokenizer
from dist.decode.engine import Engine
from dist.group.group import SoloGroup


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = build_model(CASES["fsdp1"], folder).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=torch.Generator().manual_seed(parameter.numel()))
    tokenizer = load_tokenizer(folder)
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=2048, ends=stop_finder(lambda: tokenizer))
    return model, engine, tokenizer


@pytest.fixture
def talk(tiny, tmp_path):
    return holder(tiny[1], tiny[2], tmp_path, START)
