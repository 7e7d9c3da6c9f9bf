"""A small main loop behind the real console, for tests: answers are made of words, passes take milliseconds.

Run as a program. Knows these lines: `/quit`, `/echo TEXT` (live), `/undo` (not live), `/edit TEXT`,
`/insert LINES NAME`, `/stuck`, `/die`, `/boom` (a fault in the console); anything else gets a reply. FAKE_PASS_S:
seconds a pass takes, FAKE_BLOCK: bytes of a block. FAKE_REPLY: a file with the reply. FAKE_MUTE: nothing is
answered. Every event is written to FAKE_EVENTS, one a line; where it is mute, "ready" too, once it waits for the
next line.
"""

from __future__ import annotations

import os
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chat.console.events import Abort, Candidate, ConsoleEvent, Failed, Interrupt, Leave, Submitted
from chat.console.plain import PlainLines
from chat.screen import draw
from chat.screen.stats_lines import stats_line
from chat.terminal.streams import Streams, open_streams, session_mode
from dist.protocol import BlockUpdate, FinishReason, Reply, ReplyStats
from dist.settings import GenerationSettings

BLOCK = int(os.environ.get("FAKE_BLOCK", "8"))
PASSES = 3
DEFAULT_REPLY = "The capital of France is **Paris**.\n\nIt lies on the Seine:\n\n- north bank\n- south bank\n"


@dataclass(frozen=True)
class Row:
    name: str
    live: bool


COMMANDS = (
    Row("quit", False),
    Row("echo", True),
    Row("undo", False),
    Row("edit", False),
    Row("stuck", False),
)


def complete(before: str) -> Iterator[Candidate]:
    if before == "/boom":
        raise ValueError("no candidates")
    if before.startswith("/") and " " not in before:
        for row in COMMANDS:  # an argument is wanted by /echo alone
            if row.name.startswith(before[1:]):
                yield f"/{row.name}" + " " * (row.name == "echo"), f"about {row.name}", -len(before)
    elif before.startswith("/echo "):
        for word in ("one", "other", "two"):
            if word.startswith(before[6:]):
                yield word, f"about {word}", 6 - len(before)


def decode(ids: Sequence[int]) -> str:
    """Ids are bytes of UTF-8, 256 is the end token."""
    return bytes(one for one in ids if one < 256).decode("utf-8", errors="replace")


class Fake:
    def __init__(self, streams: Streams, console: PlainLines) -> None:
        self.streams = streams
        self.console = console
        self.palette = draw.Palette.of(streams)
        self.log = Path(os.environ.get("FAKE_EVENTS", os.devnull)).open("a", buffering=1)  # noqa: SIM115
        self.text = DEFAULT_REPLY
        if "FAKE_REPLY" in os.environ:
            self.text = Path(os.environ["FAKE_REPLY"]).read_text(encoding="utf-8")
        self.pass_s = float(os.environ.get("FAKE_PASS_S", "0.02"))
        self.mute = "FAKE_MUTE" in os.environ
        self.leaving = False

    def run(self) -> None:
        self.console.set_toolbar("N 7  R 3  greedy")
        while not self.leaving:
            self.console.set_busy(False)
            if self.mute:
                self.log.write("ready\n")
            event = self.next(block=True)
            if isinstance(event, Submitted):
                self.console.echo(draw.user_echo(event.text, self.palette, self.console.width))
                self.take(event.text)
            elif isinstance(event, (Leave, Failed)):
                self.note(f"left by {type(event).__name__}")
                self.leaving = True

    def next(self, *, block: bool) -> ConsoleEvent | None:
        try:
            event = self.console.events.get(block=block)
        except queue.Empty:
            return None
        self.log.write(f"{event}\n")
        return event

    def take(self, text: str) -> None:
        if text == "/quit":
            self.leaving = True
        elif text.startswith("/edit "):
            self.console.edit(text.removeprefix("/edit "))
        elif text.startswith("/insert "):
            lines, name = text.split()[1:]
            self.console.insert("\n".join(f"/row {at}" for at in range(int(lines))), name)
        elif text == "/stuck":
            while not isinstance(self.next(block=True), Abort):
                pass
            self.note("aborted")
        elif text == "/die":
            os.kill(os.getpid(), 9)
        elif text.startswith("/"):
            self.note(text)
        elif not self.mute:
            self.answer(self.text)

    def note(self, text: str) -> None:
        self.console.note(draw.notice(text, self.palette, self.console.width))

    def answer(self, text: str) -> None:
        ids = tuple(text.encode())
        view = draw.ReplyView(decode, self.console.width, self.console.height, self.palette)
        self.console.set_stoppable(True)
        done: tuple[int, ...] = ()
        finish: FinishReason = "stop"
        for start in range(0, len(ids), BLOCK):
            block = ids[start : start + BLOCK]
            for number in range(PASSES):
                time.sleep(self.pass_s)
                if self.wants_stop():
                    finish = "cancelled"
                    break
                settled = len(block) * (number + 1) // PASSES
                draft = block[:settled] + (63,) * (len(block) - settled)
                last = number == PASSES - 1
                end = last and start + BLOCK >= len(ids)
                frame = view.update(
                    BlockUpdate(
                        index=start // BLOCK,
                        iteration=number + 1,
                        token_ids=draft,
                        changed=tuple(number == 0 or at >= settled - 2 for at in range(len(draft))),
                        exact=settled,
                        settled=len(draft) if last else 0,
                        finish="stop" if end else None,
                    )
                )
                self.console.commit(frame.commit)
                self.console.show_live(frame.draw)
                self.console.set_status(f"block {start // BLOCK + 1}, pass {number + 1}")
            if finish == "cancelled":
                break
            done += block
        self.finish(view, done, finish)

    def wants_stop(self) -> bool:
        while event := self.next(block=False):
            if isinstance(event, Interrupt):
                return True
            if isinstance(event, Submitted) and event.live:
                self.note(event.text)
            if isinstance(event, Abort):  # as the lifeline does it
                self.console.close()
                os._exit(5)
            if isinstance(event, (Leave, Failed)):
                self.leaving = True
                return True
        return False

    def finish(self, view: draw.ReplyView, done: tuple[int, ...], finish: FinishReason) -> None:
        blocks = -(-len(done) // BLOCK)
        stats = ReplyStats(
            forwards=blocks * PASSES,
            prefill_forwards=0,
            iterations=(PASSES,) * blocks,
            converged=(True,) * blocks,
            ttft_s=0.1,
            decode_s=1.0,
            tokens=len(done),
        )
        settings = GenerationSettings(add_eos_length=BLOCK - 1, refine_iter=PASSES)
        reply = Reply(prompt_len=10, token_ids=done, finish=finish, settings=settings, stats=stats)
        self.console.commit(view.finish(reply))
        self.console.clear_live()
        self.console.set_status("")
        self.console.note(stats_line(reply, 10 + len(done), 8192, self.palette, self.console.width))


def main() -> None:
    streams = open_streams()
    with session_mode(streams) as mode:
        if streams.plain:
            lines = PlainLines(streams, mode=mode)
            lines.start()
            Fake(streams, lines).run()
            lines.close()
            return
        from chat.console.app import Console

        console = Console(
            streams,
            commands=COMMANDS,
            history_file=Path(os.environ.get("FAKE_HISTORY", os.devnull)),
            complete=complete,
            mode=mode,
            vi_mode="FAKE_VI" in os.environ,
        )
        console.start()
        Fake(streams, console).run()  # type: ignore[arg-type]
        console.close()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
