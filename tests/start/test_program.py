"""The whole program without a terminal: one prompt, many prompts, and checkpoints that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from held_run import reply_by_plain_rule
from program import READY_S, ROOT, environment, replied, run_chat
from pty_screen import CTRL_D, PtyScreen

from chat.text.transcript import Transcript
from dist.settings import GenerationSettings

PROMPT = "Solve: 25 * 4 = ?"
SHORT = ("--max_new_tokens", "24", "--add_eos_length", "7", "--refine_iter", "2", "--dtype", "float32")


def right_tokens(run: Path, prompt: str) -> list[int]:
    """What SHORT's settings make of it by the plain rule."""
    settings = GenerationSettings(max_new_tokens=24, add_eos_length=7, refine_iter=2)
    asked = Transcript().with_user(prompt).with_reply("", ())
    return list(reply_by_plain_rule(run / "global_step_3", asked, settings))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", ["1", "3"])
def test_one_prompt_gives_the_tokens_of_the_plain_rule(tmp_path, tiny_checkpoint, ranks):
    run = tiny_checkpoint("fsdp1", 2)
    done = run_chat(tmp_path, ranks, str(run), PROMPT, *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert "\x1b" not in done.stdout + done.stderr
    assert answer["prompt"] == PROMPT
    assert 0 < len(answer["token_ids"]) <= 24
    assert answer["token_ids"] == right_tokens(run, PROMPT)
    assert answer["total_len"] == answer["prompt_len"] + len(answer["token_ids"])


@pytest.mark.timeout(600)
def test_a_file_of_prompts_becomes_a_file_of_results(tmp_path, tiny_checkpoint):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Question {n}\n" for n in range(6)) + "word " * 3000 + "\n")
    results = tmp_path / "results.jsonl"
    asked = (
        str(tiny_checkpoint("fsdp1", 2)),
        "--prompts_file",
        str(prompts),
        "--output_file",
        str(results),
        *SHORT,
    )
    done = run_chat(tmp_path, "2", *asked)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["prompt"] for row in rows[:6]] == [f"Question {n}" for n in range(6)]
    assert [row["finish_reason"] for row in rows][6:] == ["error"]
    assert "too long" in rows[6]["error"]
    for row in rows[:6]:
        assert list(row)[:5] == ["prompt", "response", "full_text", "prompt_len", "total_len"]
        assert row["settings"]["refine_iter"] == 2
        assert row["stats"]["forwards"] >= len(row["stats"]["iterations"]) > 0
    # Another run's results are refused before the model loads.
    before = results.read_bytes()
    done = run_chat(tmp_path, "1", *asked, "--refine_iter", "3", "--debug")
    assert (done.returncode, done.stdout, results.read_bytes()) == (2, "", before)
    assert "In it refine_iter was 2 and is 3 now." in done.stderr
    # Where the refusal comes from: the check, not the run over the loaded model.
    assert "in check_output" in done.stderr


@pytest.mark.timeout(600)
def test_each_piped_line_is_a_prompt_with_replies_on_stdout_only(tmp_path, tiny_checkpoint):
    run = tiny_checkpoint("fsdp1", 2)
    done = run_chat(tmp_path, "2", str(run), *SHORT, "--json", stdin="Hello\n\n/settings\nAnd then?")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["Hello", "/settings", "And then?"]
    assert done.stderr.startswith("Starting 2 processes ")
    assert done.stderr.count("\n") == 1
    # Prompts of their own: what came before is not in them.
    assert [row["token_ids"] for row in rows] == [right_tokens(run, row["prompt"]) for row in rows]


NO_PROMPT = (
    "There is no prompt. Standard input holds no text. "
    "Pipe prompts into the program, give --prompt TEXT, or start it on a terminal for a conversation."
)


@pytest.mark.drawn
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_without_a_terminal_and_without_a_prompt_nothing_is_loaded(tmp_path, ranks):
    # No checkpoint lies there: it is not even looked at.
    done = run_chat(tmp_path, ranks, str(tmp_path / "nothing"), stdin="\n")
    assert (done.returncode, done.stdout) == (2, "")
    started, _, said = done.stderr.partition("\n")
    assert started.startswith("Starting ")
    assert " ".join(said.split()) == NO_PROMPT


def test_a_session_cannot_be_resumed_over_a_pipe(tmp_path):
    done = run_chat(tmp_path, "1", str(tmp_path / "nothing"), "--resume", stdin="Hello\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--resume opens a conversation, which needs a terminal.")


@pytest.mark.timeout(600)
def test_a_terminal_that_cannot_be_redrawn_gets_a_conversation_of_plain_lines(tmp_path, tiny_checkpoint):
    command = ["bash", str(ROOT / "run_chat.sh"), "1", str(tiny_checkpoint("fsdp1", 2)), *SHORT]
    with PtyScreen(command, columns=100, rows=40, env=environment(tmp_path, ACCESSIBLE="1")) as talk:
        talk.wait_for("/help lists the commands", READY_S)
        talk.send("Hello\n")
        talk.wait_for(replied(), 60)
        talk.send("/settings\n")
        talk.wait_for("command line")
        talk.send("/undo\n")
        talk.wait_for("Took back 1 exchange")
        talk.send(CTRL_D)
        assert talk.wait_end(30) == 0
        assert b"\x1b" not in talk.raw
        assert talk.mode == talk.mode_before


@pytest.mark.drawn
@pytest.mark.timeout(600)
@pytest.mark.parametrize("no_color", ["", "1"])
def test_loading_shows_how_far_it_is_where_replies_go_elsewhere(tmp_path, tiny_checkpoint, no_color):
    (tmp_path / "p.txt").write_text("Hello\nAnd then?\n")
    command = f'bash "{ROOT}/run_chat.sh" 1 "$0" "$@" <p.txt >replies.txt'
    shell = ["bash", "-c", f"cd {tmp_path}; {command}", str(tiny_checkpoint("fsdp1", 2)), *SHORT, "--verify"]
    more = {"NO_COLOR": no_color} if no_color else {}
    with PtyScreen(shell, columns=100, env=environment(tmp_path, **more)) as run:
        assert run.wait_end(READY_S) == 0
        assert run.raw.count(b"Verified: every byte of 2 files matches its CRC-32. Digest of every byte: ") == 1
        for drawn in (b"Loading: ", b"Verifying: ", b"\x1b"):
            assert (drawn in run.raw) != bool(no_color)
    assert len((tmp_path / "replies.txt").read_bytes().splitlines()) >= 2


def broken(folder, source, name, change):
    """A copy of a checkpoint with one file changed."""
    copy = folder / "checkpoint"
    shutil.copytree(source, copy)
    (path,) = (copy / "global_step_3").rglob(name)
    change(path)
    return copy


@pytest.mark.drawn
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model_world_size_2_rank_1.pt", lambda path: path.unlink(), "Shard 1 of 2 is missing"),
        (
            "model_world_size_2_rank_1.pt",
            lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
            "rank_1.pt",
        ),
        ("tokenizer.json", lambda path: path.unlink(), "tokenizer"),
        (
            "config.json",
            lambda path: path.write_text(path.read_text().replace('"vocab_size": ', '"vocab_size": 1')),
            "embed_tokens",
        ),
        (
            "config.json",
            lambda path: path.write_text(
                path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
            ),
            "num_hidden_layers",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_message_and_exit_3(
    tmp_path, tiny_checkpoint, name, change, message
):
    folder = broken(tmp_path, tiny_checkpoint("fsdp1", 2), name, change)
    done = run_chat(tmp_path, "2", str(folder), PROMPT)
    assert done.returncode == 3, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    done = run_chat(tmp_path, "1", str(tmp_path / "nothing"), PROMPT)
    assert (done.returncode, done.stdout) == (3, "")
    assert str(tmp_path / "nothing") in done.stderr
