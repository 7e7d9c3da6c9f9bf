"""Sums through shared memory: which tensors they take, what happens where there are none, and the kernel itself.

On GPUs: tests/bench/gpu_sums.py.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist
import torch.distributed._symmetric_memory as symmetric_memory
from ranks import rank_environment, results_of_forks

import dist.group.peer_sums
from dist.group.group import SoloGroup
from dist.group.peer_sums import NoPeerSums, PeerSums, open_peer_sums


def doubled(tensor: torch.Tensor, added: torch.Tensor | None = None) -> None:
    """What the kernel does, as if two ranks brought the same."""
    for given in (tensor, *([] if added is None else [added])):
        assert given.data_ptr() % 16 == 0
        assert given.is_contiguous()
        assert (given.shape, given.dtype) == (tensor.shape, tensor.dtype)
    tensor *= 2
    if added is not None:
        tensor += added


@pytest.fixture
def sums() -> PeerSums:
    return PeerSums(doubled, torch.device("cpu"), 4096, torch.empty(0))


@pytest.mark.parametrize(
    ("shape", "dtype", "takes"),
    [
        ((8, 256), torch.bfloat16, True),
        ((4, 256), torch.float32, True),
        ((1, 8), torch.float16, True),
        ((1, 8, 256), torch.bfloat16, True),
        ((9, 256), torch.bfloat16, False),  # too long
        ((1, 7), torch.bfloat16, False),  # no multiple of 16 bytes
        ((0, 256), torch.float32, False),
        ((4, 256), torch.float64, False),
        ((8,), torch.int64, False),
    ],
)
def test_only_short_sums_of_known_kinds_go_through_shared_memory(sums, shape, dtype, takes):
    assert sums.takes(torch.empty(shape, dtype=dtype)) == takes


def test_tensors_of_another_device_go_by_the_usual_way(sums):
    assert not sums.takes(torch.empty(8, device="meta"))


def test_a_tensor_that_begins_at_an_odd_place_is_summed_too(sums):
    numbers = torch.arange(17, dtype=torch.float32)
    sums.sum_in_place(numbers[1:])
    sums.sum_in_place(numbers[:16])
    assert numbers.tolist() == [0.0, *(4.0 * n for n in range(1, 16)), 32.0]


@pytest.mark.parametrize(
    "added",
    [
        torch.arange(8.0).expand(2, 8).contiguous(),
        torch.arange(8.0),  # a bias
        torch.arange(8.0).expand(2, 8),
        torch.arange(8.0).bfloat16().expand(2, 8).contiguous(),
        torch.cat([torch.zeros(1), torch.arange(8.0), torch.arange(8.0)])[1:].view(2, 8),
    ],
    ids=["like the sum", "one row", "no memory of its own", "another dtype", "an odd place"],
)
def test_what_is_added_may_lie_as_it_likes(sums, added):
    numbers = torch.ones(2, 8)
    sums.sum_in_place(numbers, added)
    assert numbers.tolist() == [[2.0 + n for n in range(8)]] * 2


def on_gloo(group) -> dict:
    """Two real ranks without GPUs."""
    devices = [-1, -1]
    reported = {"opened": group.open_sums()}
    ones = torch.ones(8)
    group.sum_in_place(ones, torch.full((8,), 0.5))
    reported["sum"] = ones.tolist()
    try:
        open_peer_sums(group, torch_dist.distributed_c10d._get_default_group(), devices)
    except NoPeerSums as refusal:
        reported["refused"] = str(refusal)
    # After a refusal the ranks are in step.
    reported["smallest"] = group.smallest(group.rank + 5)
    return reported


def test_ranks_without_gpus_sum_as_usual_and_report_no_choice():
    reported = results_of_forks([2], on_gloo)[2]
    assert reported["opened"] is None
    assert reported["sum"] == [2.5] * 8
    assert reported["smallest"] == 5
    assert reported["refused"]


class TwoRanks(SoloGroup):
    """Rank 0 of two, the other of which has this to say of every step."""

    size = 2

    def __init__(self, other: dict[int, str]) -> None:
        super().__init__(torch.device("cuda", 0))
        self._other = other
        self.asked = 0

    def gather_errors(self, error: str | None) -> dict[int, str]:
        self.asked += 1
        return super().gather_errors(error) | self._other


def test_what_one_rank_cannot_none_does(monkeypatch):
    monkeypatch.setattr(dist.group.peer_sums, "_capacity", lambda group, devices: 1024)
    monkeypatch.setattr(dist.group.peer_sums, "_inbox", lambda group, capacity: pytest.fail("went on alone"))
    group = TwoRanks({1: "GPU 1 cannot reach the memory of GPU 0"})
    with pytest.raises(NoPeerSums, match="GPU 1 cannot reach the memory of GPU 0"):
        open_peer_sums(group, None, [0, 1])
    assert group.asked == 1


def test_a_wrong_sum_is_found_before_it_is_relied_on(monkeypatch):
    def opened(run) -> PeerSums:
        monkeypatch.setattr(dist.group.peer_sums, "_compiled", lambda group, addresses, capacity: run)
        return open_peer_sums(group, None, [0, 1])

    def right(tensor: torch.Tensor, added: torch.Tensor | None, patience: int) -> None:
        shares = next(brought)
        tensor.copy_(shares[0].float() + shares[1].float())
        if added is not None:
            tensor += added

    def almost_right(tensor: torch.Tensor, added: torch.Tensor | None, patience: int) -> None:
        right(tensor, added, patience)
        tensor[-1] = tensor[-1].nextafter(torch.tensor(9.0, dtype=tensor.dtype))

    group = TwoRanks({})
    group.device = torch.device("cpu")
    monkeypatch.setattr(dist.group.peer_sums, "_capacity", lambda group, devices: 1024)
    monkeypatch.setattr(dist.group.peer_sums, "_inbox", lambda group, capacity: torch.zeros(1))
    monkeypatch.setattr(dist.group.peer_sums, "_addresses", lambda memory, rank, process_group: (0, 0))
    brought = numbers_of_the_probe()
    assert opened(right).takes(torch.empty(1024, dtype=torch.float32))
    brought = numbers_of_the_probe()
    with pytest.raises(NoPeerSums, match=r"wrong in torch\.float32"):
        opened(almost_right)


def numbers_of_the_probe():
    """What both ranks bring, sum by sum."""
    generator = torch.Generator().manual_seed(0)
    for dtype in dist.group.peer_sums.DTYPES:
        for _ in range(dist.group.peer_sums.PROBE_ROUNDS):
            yield torch.randn((2, dist.group.peer_sums.PROBE_ELEMENTS), generator=generator).to(dtype)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not hasattr(symmetric_memory, "empty"),
    reason="no Triton, or a torch without symmetric memory",
)
@pytest.mark.parametrize("size", [2, 3])
def test_the_kernel_sums_right_on_every_rank_however_late_the_others_come(size):
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "ranks_sums.py"), str(size)]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout) == [[0, 40]] * size
