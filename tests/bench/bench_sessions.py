"""How long users wait for long sessions and for many: `python tests/bench/bench_sessions.py CHECKPOINT`.

Starts the program on a terminal, in folders of its own, beside 2,000 sessions and one of 1,000 turns, and prints
the median of several tries of each: from a key after `/resume other` to the names, from Enter to the last exchange,
from Enter on the next message until it is in the journal (what the model needs to read it comes after that).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import paths  # noqa: F401  (finds the rest)
from long_session import ASKED, long_session
from program import Chat

from chat.sessions.session import Session
from chat.text.tokenizer import load_tokenizer
from dist.checkpoint.open import open_checkpoint


def many_sessions(folder: Path, count: int) -> None:
    """Many short sessions."""
    session = Session(folder, name="short")
    session.say("Hello", ASKED)
    session.tokens((1,), "Hi")
    session.reply("stop", "Hi", {})
    session.close()
    data = session.path.read_bytes()
    for number in range(count):
        (folder / f"other{number:04}.jsonl").write_bytes(data)


def until(condition: Callable[[], bool], seconds: float = 120.0) -> float:
    """Seconds until something is so."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > seconds:
            raise TimeoutError
        time.sleep(0.001)
    return time.perf_counter() - began


def one_try(chat: Chat, journal: Path, turns: int) -> dict[str, float]:
    """Seconds of each wait of one conversation."""
    seconds: dict[str, float] = {}
    chat.type("/resume other")
    chat.wait_for("/resume other")
    chat.send("1")
    seconds["first key"] = until(lambda: "other1" in chat.text.partition("/resume other1")[2])
    chat.send("\x03")
    chat.wait_for("Alt-Enter new line")
    chat.type("/resume long")
    chat.wait_for("/resume long")
    chat.send("\r")
    seconds["/resume"] = until(lambda: f"{turns:,} exchanges" in chat.text)
    chat.wait_for("Alt-Enter new line")
    chat.type("And now?")
    chat.wait_for("And now?")
    size = journal.stat().st_size
    chat.send("\r")
    seconds["next message"] = until(lambda: journal.stat().st_size > size)
    chat.send("\x03")
    chat.wait_for("Alt-Enter new line", 300.0)
    chat.say("/quit")
    chat.wait_end()
    return seconds


def measure(checkpoint: str, turns: int, home: Path, tries: int) -> dict[str, list[float]]:
    """Seconds by what was waited for."""
    folder = home / "state" / "dllm-chat" / "sessions"
    found = open_checkpoint(checkpoint)
    long_session(folder, load_tokenizer(found.tokenizer_dir, found.generation_config), turns)
    many_sessions(folder, 2000)
    journal = folder / "long.jsonl"
    seconds: dict[str, list[float]] = {}
    data = journal.read_bytes()
    for _ in range(tries):
        journal.write_bytes(data)
        with Chat(home, "1", checkpoint, "--max_new_tokens", "4", "--refine_iter", "auto") as chat:
            for what, took in one_try(chat, journal, turns).items():
                seconds.setdefault(what, []).append(took)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--tries", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for what, tries in measure(options.checkpoint, options.turns, Path(home), options.tries).items():
            print(f"{what:<14} {statistics.median(tries):.3f} s  ({', '.join(f'{one:.3f}' for one in tries)})")


if __name__ == "__main__":
    sys.exit(main())
