"""A run that is watched while steps appear, are half written, vanish: what is said, and what is loaded."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from held_run import reply_by_plain_rule, run_holder
from steps import add_step, right_sums

from chat.console.events import Submitted
from chat.loading import watching
from chat.loading.watching import RunWatch
from dist.checkpoint.open import open_checkpoint

WAIT_S = 60.0


@pytest.fixture
def run(tiny_checkpoint, tmp_path) -> Path:
    """A run with step 3, saved by three ranks; step 7 lies ready in another folder."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), folder)
    right_sums(add_step(folder, 3, 7))
    (tmp_path / "made").mkdir()
    (folder / "global_step_7").rename(tmp_path / "made" / "global_step_7")
    named(folder, 3)
    return folder


def named(run: Path, step: int) -> None:
    (run / "latest_checkpointed_iteration.txt").write_text(str(step))


def files_of(step: Path) -> list[Path]:
    """In the order in which training writes them: the shards, then config and tokenizer."""
    return sorted((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.suffix != ".pt")


def a_watch(run: Path, loaded: int = 3, tell: Callable[[int | None], None] = lambda newest: None) -> RunWatch:
    return RunWatch(run, loaded=lambda: loaded, opens=open_checkpoint, tell=tell, every=0.01)


def test_a_step_is_reported_once_it_is_written_and_at_rest_and_never_opened_before(run, tmp_path):
    opened = []
    watch = RunWatch(run, loaded=lambda: 3, opens=lambda folder: opened.append(folder), tell=lambda newest: None)
    watch.look()
    assert watch.newest is None
    step = run / "global_step_7"
    made = tmp_path / "made" / "global_step_7"
    for path in files_of(made):
        target = step / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        target.write_bytes(data[: len(data) // 2])
        watch.look()
        if path.suffix == ".pt":  # the writer rests in the middle of it
            watch.look()
            assert not opened
        target.write_bytes(data)
        watch.look()
        assert watch.newest is None
    watch.look()
    assert watch.newest == 7 and opened == [str(step)]
    watch.look()
    assert len(opened) == 1
    shutil.rmtree(step)
    watch.look()
    assert watch.newest is None and not watch.is_over


def test_what_training_names_is_reported_at_once_if_it_is_whole_and_what_cannot_be_opened_never(run, tmp_path):
    watch = a_watch(run)
    shutil.copytree(tmp_path / "made" / "global_step_7", run / "global_step_7")
    shutil.copytree(run / "global_step_7", run / "global_step_9")
    (run / "global_step_9" / "actor" / "huggingface" / "config.json").unlink()
    named(run, 7)
    watch.look()
    assert watch.newest == 7
    named(run, 9)
    watch.look()
    watch.look()
    assert watch.newest == 7
    shutil.copy(
        run / "global_step_7" / "actor" / "huggingface" / "config.json",
        run / "global_step_9" / "actor" / "huggingface",
    )
    watch.look()
    assert watch.newest == 9
    assert a_watch(run, loaded=9).newest is None


def test_a_disk_that_fails_says_nothing_and_a_run_that_goes_ends_the_watch_quietly(run, tmp_path, monkeypatch):
    reported = []
    shutil.copytree(tmp_path / "made" / "global_step_7", run / "global_step_7")
    watch = a_watch(run, tell=reported.append)
    watch.look()
    watch.look()
    with monkeypatch.context() as broken:

        def fails(root):
            raise OSError(116, "Stale file handle")

        broken.setattr(watching, "run_steps", fails)
        watch.look()
        assert watch.newest == 7 and not watch.is_over
    shutil.rmtree(run)
    watch.start()
    wait_for(lambda: watch.is_over and reported == [None])
    wait_for(lambda: not any(thread.name == "watch" for thread in threading.enumerate()))


def test_a_look_that_hangs_keeps_nobody(run, tmp_path, monkeypatch):
    hangs, released = threading.Event(), threading.Event()

    def stuck(root):
        hangs.set()
        released.wait(WAIT_S)
        return ()

    monkeypatch.setattr(watching, "run_steps", stuck)
    talk = run_holder(tmp_path)
    began = time.monotonic()
    repl, console = talk(run / "global_step_3", "/watch", lambda: hangs.wait(WAIT_S), "/watch load", "Hello")
    assert time.monotonic() - began < WAIT_S / 2
    assert "There is no complete step after 3 in" in console.shown
    assert len(repl.talk.transcript.messages) == 2
    released.set()


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_the_toolbar_names_the_newer_step_and_load_answers_again_by_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(RunWatch.__init__.__kwdefaults__, "every", 0.01)
    consoles = []

    def appears():
        (tmp_path / "made" / "global_step_7").rename(run / "global_step_7")
        wait_for(lambda: consoles[0].page.console.toolbar.endswith("step 3, new: 7 (/watch load)"))

    repl, console = run_holder(tmp_path)(
        run / "global_step_3",
        "/watch load",
        "/refine_iter auto",
        "/watch",
        "Hello",
        "/watch load",
        appears,
        "More",
        (1, Submitted("/watch load", live=True)),
        "/watch off",
        prepare=lambda repl, engine: consoles.append(repl),
    )
    assert "No run is being watched." in console.shown
    assert "There is no complete step after 3 in" in console.shown
    assert "Step 7 is complete. /watch load goes on with it." in console.shown  # where there is no toolbar
    assert "The newer step will be loaded when this is done." in console.shown
    assert console.shown.index("The newer step will be loaded") < console.shown.index("Step 7 answers from here on")
    assert console.shown.count("The same as the reply of step 3 for ") == 1
    assert [node.made.checkpoint.step for node in repl.talk.tree.nodes() if node.made] == [3, 3, 7]
    by_seven = repl.talk.transcript.messages[-1]
    greedy = repl.talk.settings.with_value("refine_iter", "1").with_value("add_eos_length", "0")
    assert by_seven.token_ids == reply_by_plain_rule(run / "global_step_7", repl.talk.transcript, greedy)
    assert console.toolbar.endswith("step 7")
    (journal,) = (tmp_path / "sessions").glob("*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "checkpoint"] == [3, 7]
    assert "The run is no longer watched." in console.shown
    _, console = run_holder(tmp_path)(run / "reference", "/watch", "/watch now")
    assert "The checkpoint has no steps beside it." in console.shown
    assert "/watch cannot take 'now'." in console.shown
