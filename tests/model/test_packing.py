"""Packed weights: the same model in the same memory, given back bit-equal, and replies as by the plain rule."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plain_rule import plain_rule
from ranks import rank_environment
from steps import add_step, cut_in_half
from tiny_models import FAMILIES, tiny_model

from chat.__main__ import ONEDNN_CACHED, ONEDNN_CACHES
from dist.checkpoint.open import open_checkpoint
from dist.decode.engine import Engine
from dist.errors import CheckpointError, WeightsLost
from dist.group.group import SoloGroup
from dist.model.load import load_model
from dist.model.onednn import PackedLinear, SharedLinear, pack, packing_pays, unpack
from dist.model.reload import Reloader
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SETTINGS = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=40)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def reply_of(engine: Engine, prompt: tuple[int, ...], settings: GenerationSettings = SETTINGS) -> tuple[int, ...]:
    turn = Turn(prompts=(prompt,), settings=settings, placeholder=2, stop_ids=())
    last = list(engine.answer(turn, lambda: Control(settings=settings)))[-1]
    assert isinstance(last, Reply)
    return tuple(last.token_ids)


def kinds(module: torch.nn.Module) -> set[str]:
    """Which kinds of linear layers there are."""
    return {type(layer).__name__ for layer in module.modules() if "Linear" in type(layer).__name__}


@pytest.mark.parametrize("decoder", ["cached", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_models_give_the_tokens_of_the_plain_rule(family, decoder):
    module = copy.deepcopy(tiny_model(family))
    engine = Engine(module, SoloGroup(CPU), max_positions=512, packed=True)
    assert "PackedLinear" in kinds(module)
    assert engine.slow_reason is None
    for length in (1, 9, 70, 300):
        prompt = tuple(3 + (5 * place + length) % 50 for place in range(length))
        for settings in (SETTINGS, SETTINGS.with_value("refine_iter", "auto").with_value("add_eos_length", 31)):
            got = reply_of(engine, prompt, settings.with_value("decoder", decoder))
            assert got == plain_rule(tiny_model(family), prompt, settings, 2, ())


@pytest.mark.parametrize("family", FAMILIES)
def test_unpacking_gives_back_what_was_packed_bit_for_bit(family):
    module = copy.deepcopy(tiny_model(family)).requires_grad_(False)
    before, linears = copy.deepcopy(module.state_dict()), kinds(module)
    pack(module)
    assert kinds(module).isdisjoint({"Linear"})
    pack(module)
    unpack(module)
    assert kinds(module) == linears
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (61, 33), (130, 257)])
def test_a_packed_layer_is_that_layer_for_any_number_of_rows(shape):
    out_features, in_features = shape
    linear = torch.nn.Linear(in_features, out_features)
    module = torch.nn.Sequential(copy.deepcopy(linear))
    with torch.inference_mode():
        pack(module)
        assert torch.equal(module[0].weight, linear.weight)
        for x in (torch.randn(0, in_features), torch.randn(1, in_features), torch.randn(2, 300, in_features)):
            torch.testing.assert_close(module(x), linear(x))
        strided = torch.randn(3, in_features, 9).transpose(1, 2)[:, -5:]
        torch.testing.assert_close(module(strided), linear(strided))


PRODUCTS = """
import re, torch
from dist.model.onednn import PackedLinear
torch.set_num_threads(1)
def own(): return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
layers = [PackedLinear(torch.nn.Linear(64, 64 + 8 * n)) for n in range(5)]
with torch.inference_mode():
    layers[0](torch.ones(1, 64))
    before = own()
    for rows in range(1, 101):
        for layer in layers: layer(torch.ones(rows, 64))
print(own() - before)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_products_of_many_numbers_of_rows_take_bounded_memory():
    environment = os.environ | dict.fromkeys(ONEDNN_CACHES, ONEDNN_CACHED)
    command = [sys.executable, "-c", PRODUCTS]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True, text=True)
    # Without a bound it is 270 MiB.
    assert int(done.stdout) < 150


def test_a_tied_head_stays_one_tensor_with_its_embedding():
    module = torch.nn.Module()
    module.embedding = torch.nn.Embedding(11, 6)
    module.head = torch.nn.Linear(6, 11, bias=False)
    module.head.weight = module.embedding.weight
    linear = copy.deepcopy(module.head)
    x = torch.randn(8, 6)
    with torch.inference_mode():
        pack(module)
        assert isinstance(module.head, SharedLinear)
        assert module.head.weight is module.embedding.weight
        torch.testing.assert_close(module.head(x), linear(x))
    unpack(module)
    assert type(module.head) is torch.nn.Linear
    assert module.head.weight is module.embedding.weight


class OtherLinear(torch.nn.Linear):
    """Its own forward may do more."""


def test_what_is_no_plain_float32_layer_of_its_own_stays_as_it_is():
    module = torch.nn.ModuleDict(
        {
            "plain": torch.nn.Linear(4, 4),
            "bf16": torch.nn.Linear(4, 4, dtype=torch.bfloat16),
            "empty": torch.nn.Linear(4, 4, device="meta"),
            "other": OtherLinear(4, 4),
            "hooked": torch.nn.Linear(4, 4),
            "below": torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4))),
        }
    )
    module["hooked"].register_forward_pre_hook(lambda *_: None)
    module["below"].register_forward_hook(lambda *_: None)
    before = dict(module.named_modules())
    pack(module)
    after = dict(module.named_modules())
    assert [name for name in before if after[name] is not before[name]] == ["plain"]
    assert isinstance(after["plain"], PackedLinear)


@pytest.mark.parametrize(
    ("device", "placement", "vendor", "pays"),
    [
        ("cpu", "whole", "AuthenticAMD", True),
        ("cpu", "exchanged", "AuthenticAMD", True),
        ("cpu", "whole", "GenuineIntel", False),
        ("cpu", "shares", "AuthenticAMD", False),
        ("cpu", "boxes", "AuthenticAMD", False),
        ("cpu", None, "AuthenticAMD", False),
        ("cuda", "whole", "AuthenticAMD", False),
        ("cpu", "whole", None, False),
    ],
)
def test_weights_are_packed_where_it_pays(tmp_path, device, placement, vendor, pays):
    cpuinfo = tmp_path / "cpuinfo"
    if vendor:
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: AuthenticAMD or not\n")
    assert packing_pays(torch.device(device), placement, cpuinfo) == (pays and torch.backends.mkl.is_available())


# Other weights while the model is packed.


@pytest.fixture
def run(tiny_checkpoint, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), folder)
    add_step(folder, 3, 7)
    return folder


def packed_engine(run: Path, spoil=lambda folder: None) -> tuple[Engine, Reloader]:
    """An engine on step 3; `spoil` is called with each folder that is opened later."""

    def open_folder(folder: str):
        checkpoint = open_checkpoint(folder)
        spoil(Path(folder))
        return checkpoint

    loaded = load_model(open_checkpoint(run / "global_step_3"), SoloGroup(CPU), dtype="float32")
    reloader = Reloader(loaded, SoloGroup(CPU), open_folder)
    return Engine(loaded.module, SoloGroup(CPU), max_positions=512, reloader=reloader, packed=True), reloader


def right_reply(run: Path, step: int) -> tuple[int, ...]:
    module = load_model(open_checkpoint(run / f"global_step_{step}"), SoloGroup(CPU), dtype="float32").module
    return plain_rule(module, tuple(range(5, 45)), SETTINGS, 2, ())


def test_other_weights_are_read_into_a_packed_model_and_packed_again(run):
    engine, reloader = packed_engine(run)
    held = reloader.loaded.facts.bytes_per_rank
    for step in (3, 7, 3):
        if reloader.loaded.facts.step != step:
            engine.load(reloader.check(str(run / f"global_step_{step}")))
        assert reloader.loaded.facts.bytes_per_rank == held
        assert "Linear" not in kinds(reloader.loaded.module)
        assert reply_of(engine, tuple(range(5, 45))) == right_reply(run, step)
    assert right_reply(run, 3) != right_reply(run, 7)


def test_a_packed_model_has_its_old_weights_after_a_load_that_failed(run):
    engine, reloader = packed_engine(run, lambda folder: cut_in_half(folder) if "step_7" in str(folder) else None)
    with pytest.raises(CheckpointError, match="are in place again"):
        engine.load(reloader.check(str(run / "global_step_7")))
    assert "Linear" not in kinds(reloader.loaded.module)
    assert reply_of(engine, tuple(range(5, 45))) == right_reply(run, 3)


def test_weights_that_are_lost_while_packed_are_reported_as_lost(run):
    engine, reloader = packed_engine(run, cut_in_half)
    with pytest.raises(WeightsLost):
        engine.load(reloader.check(str(run / "global_step_7")))


MEASURE = """
import pathlib, torch
from dist.model.onednn import pack, unpack

def memory(name):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024

torch.set_num_threads(1)
MIB = 1 << 18
pack(torch.nn.Sequential(torch.nn.Linear(64, 64)))
layers = (torch.nn.Linear(1024, MIB * size // 1024, bias=False) for size in (4, 16, 1, 32, 8) * 6)
module = torch.nn.Sequential(*layers).requires_grad_(False)
held = memory("VmRSS")
for change in (pack, unpack, pack):
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    change(module)
    print(memory("VmHWM") - held, memory("VmRSS") - held)
"""


def test_a_packed_model_is_never_there_twice():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], env=rank_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(figures) == 3
    for peak, after in figures:  # MiB above the 366 of the model, whose largest layer has 32
        assert peak <= 96, figures
        assert after <= 16, figures
