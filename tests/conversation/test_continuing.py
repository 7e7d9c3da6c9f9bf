"""The command that continues a conversation, as it is printed on leaving."""

from __future__ import annotations

import pytest

from chat.conversation.continuing import command_line


@pytest.mark.parametrize(
    ("argv", "ranks", "words"),
    [
        ([], "1", "bash run_chat.sh --resume mine"),
        (["--checkpoint_dir=/a run"], "1", "bash run_chat.sh '/a run' --resume mine"),
        # As ranks of several are given their options.
        (["--", "--checkpoint_dir=/run", "--n=1"], "2", "bash run_chat.sh 2 /run --n=1 --resume mine"),
        (
            ["--", "--resume", "old", "--top_k=3", "--seed", "4", "--debug"],
            "4",
            "bash run_chat.sh 4 --debug --resume mine",
        ),
    ],
)
def test_the_command_that_continues_is_the_one_that_began(argv: list[str], ranks: str, words: str) -> None:
    environment = {"DLLM_LAUNCHER_PID": "1", "LOCAL_WORLD_SIZE": ranks}
    assert command_line(argv, environment, "mine") == words


def test_by_hand_it_is_the_same_command() -> None:
    assert command_line(["--debug"], {}, "mine") == "the same command with --resume mine"
