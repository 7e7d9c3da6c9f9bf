"""Several copies side by side: the messages between them, who gets which prompts, what becomes of failures."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from checkpoints import free_port
from scripted_engine import FACTS, SETTINGS, ScriptedEngine, Texts, question

from chat.batch.copies import Copies, serve, tell_failure
from chat.batch.prompts import read_prompts
from chat.batch.run import run_batch
from chat.loading.division import divide
from chat.start.options import parse_options
from chat.text.tokenizer import ChatTokenizer
from dist.errors import CheckpointError, PromptError, UsageError
from dist.group.copies import PIECE_BYTES, Box, Division, hear_division, tell_free_memory

COPIES = 3


class DictStore:
    """What torch's store does, among the threads of one process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def delete_key(self, key: str) -> bool:
        return self.values.pop(key, None) is not None


@dataclass
class Engine(ScriptedEngine):
    """One copy's engine, which takes a moment for each pass, so that all copies get their turn."""

    was_let_go: bool = False
    before_pass: Callable[[int], None] = field(default=lambda number: time.sleep(1e-3))

    def shutdown(self) -> None:
        self.was_let_go = True


@dataclass
class Ran:
    code: int
    err: str
    engines: list[Engine]
    store: DictStore


@pytest.fixture
def run(tokenizer: ChatTokenizer) -> Callable[..., Ran]:
    def run(*argv: str, interrupted: Callable[[], bool] = lambda: False, **engine: Any) -> Ran:
        """Rank 0 on this thread, the other copies on theirs."""
        store, streams, options = DictStore(), Texts(), parse_options(argv)
        engines = [Engine(tokenizer, **engine) for _ in range(COPIES)]
        others = [threading.Thread(target=serve, args=(engines[n], store, n)) for n in range(1, COPIES)]
        for thread in others:
            thread.start()
        copies = Copies(engines[0], store, COPIES)
        prompts = read_prompts(options, None)  # type: ignore[arg-type]
        try:
            arguments = (engines[0], tokenizer, options, SETTINGS, prompts, streams, FACTS)
            code = run_batch(*arguments, interrupted=interrupted, workers=copies)
        finally:
            copies.let_go()
            for thread in others:
                thread.join(20)
        return Ran(code, streams.notices.getvalue(), engines, store)

    return run


@pytest.fixture
def asked(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"prompt number-{number} ok\n" for number in range(30)))
    return ("--prompts_file", str(path), "--output_file", str(tmp_path / "r.jsonl"))


def results(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]


def test_all_copies_work_and_results_are_those_of_one(
    run: Callable[..., Ran], asked: tuple[str, ...], tmp_path: Path
) -> None:
    ran = run(*asked, "--batch_size", "2", "--verbose_trace")
    assert (ran.code, ran.err) == (0, "")
    made = results(tmp_path)
    assert [one["prompt"] for one in made] == [f"prompt number-{number} ok" for number in range(30)]
    assert all(engine.turns for engine in ran.engines)
    assert sum(len(turn.prompts) for engine in ran.engines for turn in engine.turns) == 30
    assert all(engine.was_let_go for engine in ran.engines[1:])
    assert not [key for key in ran.store.values if "/work/" in key or "/made/" in key]
    (tmp_path / "r.jsonl").rename(tmp_path / "copies.jsonl")
    alone = parse_options([*asked, "--batch_size", "2", "--verbose_trace"])
    engine = ScriptedEngine(ran.engines[0].tokenizer)
    prompts = read_prompts(alone, None)  # type: ignore[arg-type]
    run_batch(engine, engine.tokenizer, alone, SETTINGS, prompts, Texts(), FACTS, interrupted=lambda: False)
    assert results(tmp_path) == made


def test_few_prompts_are_shared_out_evenly(run: Callable[..., Ran], asked: tuple[str, ...]) -> None:
    ran = run(*asked, fits=lambda tokens, block: 64)
    counts = [len(turn.prompts) for engine in ran.engines for turn in engine.turns]
    assert sum(counts) == 30
    assert max(counts) == 10


def test_where_passes_are_captured_all_copies_rehearse_before_the_first_prompt(
    run: Callable[..., Ran], asked: tuple[str, ...], tmp_path: Path
) -> None:
    scripted = {"fits": lambda tokens, block: 6, "captures": True, "say": lambda text, seed: "Fine."}
    ran = run(*asked, "--rank_progress", **scripted)
    assert ran.code == 0
    assert [one["prompt"] for one in results(tmp_path)] == [f"prompt number-{number} ok" for number in range(30)]
    for engine in ran.engines:
        first, *others = engine.turns
        longest = max(len(turn.prompts[0]) for turn in others) + SETTINGS.max_new_tokens
        assert (len(first.prompts), first.together) == (6, 6)
        assert first.settings.max_new_tokens == 2 * (SETTINGS.add_eos_length + 1)
        # As much storage as the first batch needs.
        assert abs(len(first.prompts[0]) + first.settings.max_new_tokens - longest) <= 2
        assert not any(len(set(prompt)) == 1 for turn in others for prompt in turn.prompts)
    said = ran.err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["all", "rank 0", "rank 1", "rank 2"]
    assert said[0].startswith("all: 30 replies, ")
    # A single prompt needs none, and so does what is slow anyway.
    (tmp_path / "r.jsonl").unlink()
    slow = run(*asked, **scripted, remark_after=lambda turns: "Slow.")
    assert sum(len(turn.prompts) for one in slow.engines for turn in one.turns) == 30
    (tmp_path / "r.jsonl").unlink()
    Path(asked[1]).write_text("just one ok\n")
    assert sum(len(one.turns) for one in run(*asked, **scripted).engines) == 1


def test_a_copy_whose_rehearsal_fails_for_want_of_memory_ends_the_run(
    run: Callable[..., Ran], asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(self: Engine, turn: Any, poll: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise CheckpointError("Out of GPU memory while passes were captured.")
        return ScriptedEngine.answer(self, turn, poll)

    monkeypatch.setattr(Engine, "answer", answer)
    with pytest.raises(CheckpointError, match="Out of GPU memory"):
        run(*asked, fits=lambda tokens, block: 6, captures=True, say=lambda text, seed: "Fine.")


def test_of_many_prompts_a_copy_gets_fewer_towards_the_end(
    run: Callable[..., Ran], asked: tuple[str, ...], tmp_path: Path
) -> None:
    Path(asked[1]).write_text("".join(f"prompt number-{number} ok\n" for number in range(100)))
    ran = run(*asked, fits=lambda tokens, block: 4, say=lambda text, seed: "Fine.")
    assert [one["prompt"] for one in results(tmp_path)] == [f"prompt number-{number} ok" for number in range(100)]
    sizes = [len(turn.prompts) for engine in ran.engines for turn in engine.turns]
    assert sum(sizes) == 100
    assert max(sizes) == 16
    assert sum(size <= 4 for size in sizes) >= 2


def test_a_slow_copy_holds_nobody_up(run: Callable[..., Ran], asked: tuple[str, ...], tmp_path: Path) -> None:
    """Its prompt is answered last, and the results are in order for all that."""
    others_are_done = threading.Event()
    left = threading.Semaphore(0)

    def say(text: str, seed: int | None) -> str:
        if "number-0 " in text:
            others_are_done.wait(20)
        else:
            left.release()
            if left._value >= 29:
                others_are_done.set()
        return f"Fine: {question(text)}"

    # Rank 0 looks after the others between passes, so the slow one is another.
    def order(rows: list[Any]) -> list[Any]:
        return rows

    ran = run(*asked, "--batch_size", "1", say=say, order=order)
    assert ran.code == 0
    assert others_are_done.is_set()
    assert [one["response"] for one in results(tmp_path)] == [
        f"Fine: prompt number-{number} ok" for number in range(30)
    ]


def test_a_prompt_that_fails_fails_alone(run: Callable[..., Ran], asked: tuple[str, ...], tmp_path: Path) -> None:
    def say(text: str, seed: int | None) -> str:
        if "number-7 " in text or "number-20 " in text:
            raise PromptError("The model's output is not a number (NaN).", "Why.", "Try.")
        return f"Fine: {question(text)}"

    ran = run(*asked, "--batch_size", "4", say=say)
    assert ran.code == 4
    failed = [place for place, one in enumerate(results(tmp_path)) if one["finish_reason"] == "error"]
    assert failed == [7, 20]
    assert results(tmp_path)[7]["error"] == "The model's output is not a number (NaN). Why. Try."


def test_an_interrupt_reaches_all_copies_and_a_rerun_makes_the_rest(
    run: Callable[..., Ran], asked: tuple[str, ...], tmp_path: Path
) -> None:
    output = tmp_path / "r.jsonl"
    ran = run(*asked, "--batch_size", "2", interrupted=lambda: output.read_text().count("\n") > 5)
    assert ran.code == 130
    kept = results(tmp_path)
    assert 5 < len(kept) < 30
    assert run(*asked, "--batch_size", "2").code == 0
    assert [one["prompt"] for one in results(tmp_path)] == [f"prompt number-{number} ok" for number in range(30)]
    assert {one["finish_reason"] for one in results(tmp_path)} == {"stop"}


def test_what_was_finished_out_of_order_outlives_the_failure_of_a_copy(
    run: Callable[..., Ran], asked: tuple[str, ...], tmp_path: Path
) -> None:
    def say(text: str, seed: int | None) -> str:
        if "number-0 " in text:
            end = time.monotonic() + 20
            later = tmp_path / "r.jsonl.later"
            while time.monotonic() < end and not (later.exists() and later.read_text().count("\n") > 3):
                time.sleep(0.01)
            raise CheckpointError("Out of GPU memory while passes were captured.")
        return f"Fine: {question(text)}"

    with pytest.raises(CheckpointError, match="Out of GPU memory"):
        run(*asked, "--batch_size", "1", say=say)
    kept = (tmp_path / "r.jsonl.later").read_text().count("\n")
    assert kept > 3
    again = run(*asked, "--batch_size", "1")
    assert sum(len(turn.prompts) for engine in again.engines for turn in engine.turns) == 30 - kept
    assert [one["prompt"] for one in results(tmp_path)] == [f"prompt number-{number} ok" for number in range(30)]


def test_a_copy_that_cannot_load_ends_the_run_with_its_reason(
    tokenizer: ChatTokenizer,
    asked: tuple[str, ...],
) -> None:
    store, engine, options = DictStore(), Engine(tokenizer), parse_options(asked)
    tell_failure(store, 2, CheckpointError("Shard 3 of 4 is missing.", "Why.", "Copy it."))
    prompts = read_prompts(options, None)  # type: ignore[arg-type]
    arguments = (engine, tokenizer, options, SETTINGS, prompts, Texts(), FACTS)
    with pytest.raises(CheckpointError, match=r"Shard 3 of 4 is missing\. Why\. Copy it\."):
        run_batch(*arguments, interrupted=lambda: False, workers=Copies(engine, store, COPIES))


def test_a_message_may_be_longer_than_what_the_store_takes_at_once() -> None:
    store = torch_dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    text = "\u00e9\x00x" * (3 * PIECE_BYTES)
    before = store.num_keys()
    sender, taker = Box(store, "b"), Box(store, "b")
    assert taker.take() is None
    sender.put({"text": text})
    sender.put({"n": 2})
    assert taker.take() == {"text": text}
    assert taker.wait() == {"n": 2}
    assert store.num_keys() == before


# Who holds the model with whom.


def division(
    ranks: int, parallel: str = "auto", replies: int = 100, gib: int = 100, gpu: bool = True, **config: int
) -> tuple[int, int, str]:
    """(copies, ranks each, mode) for 7B parameters in 16 bits where each rank has so many GiB free."""
    made = whole_division(ranks, parallel, replies, gib, gpu, **config)
    return made.copies, made.ranks, made.mode


def whole_division(
    ranks: int, parallel: str = "auto", replies: int = 100, gib: int = 100, gpu: bool = True, **config: int
) -> Division:
    shape = {"num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944, **config}
    checkpoint: Any = SimpleNamespace(config=shape, parameters=7_600_000_000, dtype="bfloat16")
    device = torch.device("cuda" if gpu else "cpu")
    store = DictStore()
    all_ranks: list[Any] = [
        SimpleNamespace(rank=rank, size=ranks, device=device, store=store) for rank in range(ranks)
    ]
    for one in all_ranks:
        tell_free_memory(one, (gib + one.rank) << 30)
    made = divide(parallel, "bfloat16", checkpoint, all_ranks[0], replies)
    assert hear_division(all_ranks[-1]) == made
    return made


def test_many_prompts_get_copies_on_as_few_ranks_as_hold_the_model() -> None:
    assert division(4) == (4, 1, "none")
    assert division(4, gib=10) == (2, 2, "auto")
    # 28 heads: not by 3.
    assert division(8, gib=7) == (2, 4, "auto")
    assert division(7, gib=10) == (3, 2, "auto")
    # Experts are not cut.
    assert division(4, gib=10, num_experts=8) == (1, 4, "auto")
    assert division(7, gib=3) == (1, 7, "auto")
    assert division(2, gpu=False) == (2, 1, "none")


def test_a_conversation_and_a_few_prompts_get_one_model_on_all_ranks() -> None:
    assert division(4, replies=0) == (1, 4, "auto")
    assert division(4, "copies", replies=0) == (1, 4, "auto")
    assert division(4, replies=1) == (1, 4, "auto")
    assert division(4, replies=7) == (1, 4, "auto")
    assert division(4, replies=8) == (4, 1, "none")
    assert division(2, replies=2, gpu=False) == (2, 1, "none")
    assert division(4, "tp") == (1, 4, "tp")
    assert division(4, "fsdp") == (1, 4, "fsdp")


def test_one_model_is_cut_over_as_many_gpus_as_its_parts_can_be_shared_out_to() -> None:
    assert division(3, replies=0) == (1, 2, "auto")
    assert division(6, replies=1) == (1, 4, "auto")
    # 7 divides the query heads, but not the key-value heads.
    assert division(7, replies=0) == (1, 4, "auto")
    assert division(5, replies=0, num_attention_heads=25, num_key_value_heads=5) == (1, 5, "auto")
    # Where fewer do not hold it, or none can, all take part in another way.
    assert division(3, replies=0, gib=7) == (1, 3, "auto")
    assert division(3, replies=0, num_experts=8) == (1, 3, "auto")
    assert division(3, replies=0, gpu=False) == (1, 3, "auto")
    assert division(3, "tp", replies=0) == (1, 3, "tp")


def test_ranks_that_have_nothing_to_do_are_named_on_one_line() -> None:
    for said, parts in (
        (whole_division(4, replies=0, num_attention_heads=14, num_key_value_heads=2).words, "over 2 ranks"),
        (whole_division(7, gib=10).words, "3 copies, 2 ranks each"),
    ):
        assert parts in said
        assert re.search(r"; (2 ranks have|1 rank has) nothing to do", said)
        assert "\n" not in said


def test_copies_can_be_asked_for_by_name() -> None:
    assert division(4, "copies", replies=1) == (4, 1, "none")
    assert division(8, "copies:2") == (4, 2, "tp")
    assert division(4, "copies:4") == (1, 4, "auto")
    with pytest.raises(UsageError, match=r"--parallel copies:8 needs 8 ranks\. There are 4\."):
        division(4, "copies:8")
    for wrong in ("copies:", "copies:0", "copies:x", "copys"):
        with pytest.raises(UsageError, match="--parallel cannot be"):
            parse_options(["--prompt", "x", "--parallel", wrong])
    with pytest.raises(UsageError, match="is for prompts given at the start"):
        parse_options(["--parallel", "copies:2"])


def test_ranks_left_over_belong_to_no_copy() -> None:
    assert [Division(copies=3, ranks=2, mode="tp").copy_of(rank) for rank in range(7)] == [0, 0, 1, 1, 2, 2, None]
