"""Many prompts through the start script: Ctrl-C in a real terminal, closed pipes, prompts from standard input."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from program import ROOT, Chat, environment, run_chat
from pty_screen import CTRL_C

pytestmark = pytest.mark.timeout(600)

SHORT = ("--max_new_tokens", "24", "--add_eos_length", "7", "--refine_iter", "2", "--dtype", "float32")
SLOW = (
    "--max_new_tokens",
    "400",
    "--add_eos_length",
    "3",
    "--refine_iter",
    "2",
    "--dtype",
    "float32",
    "--batch_size",
    "4",
)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.drawn
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_ctrl_c_ends_after_the_present_pass_and_a_rerun_goes_on(tmp_path, tiny_checkpoint, ranks):
    prompts, output = tmp_path / "p.txt", tmp_path / "r.jsonl"
    prompts.write_text("".join(f"Question {number}\n" for number in range(12)))
    asked = (ranks, str(tiny_checkpoint("fsdp1", 2)), "--prompts_file", str(prompts), "--output_file", str(output))
    with Chat(tmp_path, *asked, *SLOW, wait=False) as chat:
        chat.wait_for(lambda screen: output.exists() and output.read_text().count("\n") >= 4, 120)
        chat.wait_for("/12 replies")
        chat.send(CTRL_C)
        assert chat.wait_end(30) == 130
        screen = chat.text
        assert chat.mode == chat.mode_before
        assert not chat.ranks()
    kept = records(output)
    finished = sum(record["finish_reason"] != "cancelled" for record in kept)
    assert 4 <= finished < len(kept) <= 12
    assert f"Interrupted: {finished} of 12 replies are done. Run the same command again to continue." in screen
    # The replies under way were cut between two blocks.
    cut = [record for record in kept if record["finish_reason"] == "cancelled"]
    assert all(len(record["token_ids"]) % 4 == 0 for record in cut)
    again = run_chat(tmp_path, *asked, *SLOW)
    assert (again.returncode, again.stdout) == (0, "")
    assert f"{finished} of 12 results were already there." in again.stderr
    made = records(output)
    assert [record["prompt"] for record in made] == prompts.read_text().splitlines()
    assert {record["finish_reason"] for record in made} <= {"length", "stop"}
    for before, after in zip(kept, made):
        assert after["token_ids"][: len(before["token_ids"])] == before["token_ids"]


def test_a_reader_that_has_enough_ends_the_run_quietly(tmp_path, tiny_checkpoint):
    lines = "".join(f"Question {number}\n" for number in range(40))
    command = 'bash "$0" 2 "$1" --prompts_file - --json --batch_size 4 "${@:2}" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", command, str(ROOT / "run_chat.sh"), str(tiny_checkpoint("fsdp1", 2)), *SHORT],
        env=environment(tmp_path),
        input=lines,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert json.loads(done.stdout)["prompt"] == "Question 0"
    said = [
        line for line in done.stderr.splitlines() if not line.startswith(("Starting 2 processes", "tokenizer.json"))
    ]
    assert (done.returncode, said) == (0, [])


def test_the_whole_of_standard_input_is_one_prompt(tmp_path, tiny_checkpoint):
    checkpoint = str(tiny_checkpoint("fsdp1", 2))
    done = run_chat(
        tmp_path, "1", checkpoint, "-", "--json", "--n", "3", "--temperature", "0.9", *SHORT, stdin="a\nb\n"
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [row["prompt"] for row in rows] == ["a\nb"] * 3
    assert len({row["seed"] for row in rows}) == 3
    assert len({tuple(row["token_ids"]) for row in rows}) > 1
