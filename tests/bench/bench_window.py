"""Tokens a pass at `auto`: a window with its drafts against blocks, both in one run, every text equal to greedy.

    PYTHONPATH=. python tests/bench/bench_window.py [--questions N] [--brief] [--only PARTS] [--base FOLDER]

Counts do not depend on the machine: all tokens over all passes; prompts this short need none before the first one.
All sides answer in one batch, which changes no reply. Blocks are refined until they are exact (R = N + 1).
`embedded`: held-out questions of the embedded model. `talk` and `edits`: a conversation, summaries and copies by
its plain base, which is expanded into FOLDER where it is not there yet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bench_cpu import Bench

from chat.demo import DEFAULT_SYSTEM, demo_folder
from chat.demo.prepare import find_gguf
from chat.demo.recipe.conversations import test_questions
from chat.demo.recipe.corpus import opened_for
from chat.text.prompt import prompt_ids
from chat.text.transcript import Transcript
from dist.group.group import SoloGroup
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

Ids = tuple[int, ...]
TOGETHER = 4
TALK = (
    "What is a volcano?",
    "Why do volcanoes erupt?",
    "Name three famous volcanoes.",
    "Which of these is the highest?",
    "Can people live near a volcano?",
    "Sum up what you told me about volcanoes.",
)
STORY = (
    "The old lighthouse on the northern cape was built in 1871 by a company of masons from the mainland. For "
    "eighty years its keeper lit the lamp every evening and wrote the weather into a large brown book. When the "
    "lamp became electric, the last keeper moved to the village, but he still climbed the tower every Sunday to "
    "look at the sea."
)
EDITS = (
    f"Repeat this text word for word, but write 'winter' in the place of 'evening':\n\n{STORY}",
    f"Repeat this text with one word changed, 'brown' to 'green':\n\n{STORY}",
    f"Summarize this text in two sentences, in its own words:\n\n{STORY}",
    f"Copy the first two sentences of this text:\n\n{STORY}",
)


@dataclass
class Side:
    """One way of decoding and what it took."""

    name: str
    settings: GenerationSettings
    tokens: int = 0
    passes: int = 0
    same: int = 0
    replies: int = 0
    drafts: Counter[str] = field(default_factory=Counter)


def sides(most: int, *, brief: bool) -> list[Side]:
    """Token by token, which the others are held to; blocks; windows. `brief`: only those that are compared."""
    lengths = (7, 15)

    def settings(n: int, rounds: int | str, drafts: str = "all") -> GenerationSettings:
        return GenerationSettings(
            add_eos_length=n,
            refine_iter=rounds,
            max_new_tokens=most,
            drafts=drafts,  # type: ignore[arg-type]
        )

    blocks = lengths[:1] if brief else lengths
    found = [
        Side("token by token", settings(0, 1)),
        *(Side(f"blocks, N = {n}", settings(n, n + 1)) for n in blocks),
    ]
    for drafts in ("all",) if brief else ("own", "all"):
        found += [Side(f"window, N = {n}, drafts {drafts}", settings(n, "auto", drafts)) for n in lengths]
    return found


def compare(bench: Bench, compared: Sequence[Side], prompts: Sequence[Ids]) -> list[Ids]:
    """The replies to some prompts by every side, all in one turn of the engine; gives the greedy ones."""
    rows = [(prompt, side) for prompt in prompts for side in compared]
    turn = Turn(
        prompts=tuple(prompt for prompt, _ in rows),
        settings=compared[0].settings,
        placeholder=bench.tokenizer.eos_id,
        stop_ids=bench.tokenizer.stop_ids,
        row_settings=tuple(side.settings for _, side in rows),
    )
    events = bench.engine.answer(turn, lambda: Control(settings=turn.settings))
    replies = {event.row: event for event in events if isinstance(event, Reply)}
    greedy: list[Ids] = []
    for row, (_, side) in enumerate(rows):
        reply = replies[row]
        if side is compared[0]:
            greedy.append(reply.token_ids)
        side.tokens += len(reply.token_ids)
        side.passes += reply.stats.forwards
        side.replies += 1
        side.same += reply.token_ids == greedy[-1]
        side.drafts.update(reply.stats.drafts)
    return greedy


def table(title: str, compared: Sequence[Side]) -> None:
    base = compared[1].tokens / compared[1].passes
    print(f"\n{title}\n\n| | tokens | passes | tokens a pass | / {compared[1].name} | as greedy | drafts |")
    print("|---|---|---|---|---|---|---|")
    for side in compared:
        rate = side.tokens / side.passes
        drafts = ", ".join(f"{name} {count}" for name, count in side.drafts.items() if count)
        print(
            f"| {side.name} | {side.tokens} | {side.passes} | {rate:.2f} | {rate / base:.2f}"
            f" | {side.same} of {side.replies} | {drafts} |",
            flush=True,
        )


def embedded(bench: Bench, count: int, brief: bool) -> None:
    questions = test_questions()
    compared = sides(192, brief=brief)
    asked = questions[:: max(1, len(questions) // count)][:count]
    prompts = [tuple(opened_for(bench.tokenizer.backend, one.messages, "assistant")) for one in asked]
    for start in range(0, count, TOGETHER):
        compare(bench, compared, prompts[start : start + TOGETHER])
    table(f"Embedded model, {count} held-out questions", compared)


def talk(bench: Bench, brief: bool) -> None:
    compared, transcript = sides(64, brief=brief), Transcript().with_system(DEFAULT_SYSTEM)
    for message in TALK:
        transcript = transcript.with_user(message)
        (reply,) = compare(bench, compared, [prompt_ids(transcript, bench.tokenizer, True)])
        text = bench.tokenizer.decode(bench.tokenizer.without_stop(reply))
        transcript = transcript.with_reply(text, reply)
    table(f"Plain base, a conversation of {len(TALK)} turns", compared)


def edits(bench: Bench, brief: bool) -> None:
    compared = sides(96, brief=brief)
    for prompt in EDITS:
        compare(bench, compared, [prompt_ids(Transcript().with_user(prompt), bench.tokenizer, True)])
    table("Plain base, summaries and copies with a word changed", compared)


def base_folder(folder: Path) -> str:
    if not (folder / "model.safetensors").is_file():
        subprocess.run([sys.executable, "-m", "chat.demo.expand", str(find_gguf()), str(folder)], check=True)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--brief", action="store_true", help="blocks at N = 7 and windows with all drafts only")
    parser.add_argument("--only", default="embedded,talk,edits", help="parts, comma-separated")
    parser.add_argument("--base", type=Path, default=Path(tempfile.gettempdir()) / "dllm-chat-base")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = options.only.split(",")
    group = SoloGroup(torch.device("cpu"))
    if "embedded" in parts:
        embedded(Bench(str(demo_folder()), group, "float32"), options.questions, options.brief)
    if {"talk", "edits"} & set(parts):
        bench = Bench(base_folder(options.base), group, "float32")
        for name, part in (("talk", talk), ("edits", edits)):
            if name in parts:
                part(bench, options.brief)


if __name__ == "__main__":
    main()
