"""A prompt file by copies of the model, against one rank and against one model cut over all: tokens a second.

    PYTHONPATH=. python tests/bench/bench_copies.py [CHECKPOINT] [--ranks N] [--prompts N ...] [--ways WAY ...]

Each way runs the whole program, once for each number of prompts. Seconds count from the first prompt sent to the
last reply written, as the program's own `--rank_progress` says; "steady" is what more prompts add (tokens and
seconds of a number less those of the first). "Start" is all else: loading, and on GPUs the rehearsal of a batch.
Replies are cut by their budget alone where the model names no stop token early. For the figures of a 7B shape:
CHECKPOINT as tests/bench/bench_gpu.py writes it, --ranks 4 --prompts 256 1024 --prompt_tokens 128 --new 128.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import paths  # noqa: F401
from ranks import rank_environment, torchrun

from chat.demo import demo_folder

TALK = "Tell me about the sea, the wind and the people who live by fishing, and name three towns on the coast. "


class Ran(NamedTuple):
    """One run: seconds of all of it and since its first prompt, tokens, a digest of them, what each rank says."""

    whole_s: float
    seconds: float
    tokens: int
    word: str
    each: list[str]


def run(folder: Path, options: argparse.Namespace, ranks: int, parallel: str, count: int) -> Ran:
    prompts, output = folder / "p.jsonl", folder / "r.jsonl"
    words = (TALK * -(-options.prompt_tokens // 20)).split()[: options.prompt_tokens]
    with prompts.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": f"{number} {' '.join(words)}"}) + "\n")
    output.unlink(missing_ok=True)
    arguments = [
        *("-m", "chat", "--checkpoint_dir", options.checkpoint, "--prompts_file", str(prompts)),
        *("--output_file", str(output), "--parallel", parallel, "--dtype", options.dtype),
        *("--add_eos_length", str(options.blocks), "--refine_iter", str(options.rounds_of)),
        *("--max_new_tokens", str(options.new), "--no-use_chat_template", "--rank_progress"),
    ]
    command = torchrun(ranks, *arguments) if ranks > 1 else [sys.executable, *arguments]
    environment = rank_environment(DLLM_RUN_DIR=str(folder), OMP_NUM_THREADS=str(options.threads))
    started = time.perf_counter()
    ran = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    whole = time.perf_counter() - started
    said = [line for line in ran.stderr.splitlines() if "tokens/s" in line]
    if ran.returncode or not said:
        raise SystemExit(ran.stderr)
    made = [json.loads(line)["token_ids"] for line in output.read_text().splitlines()]
    seconds = re.search(r" in ([\d.]+) s", said[0])
    assert seconds is not None
    word = hashlib.sha256(str(made[: min(options.prompts)]).encode()).hexdigest()
    return Ran(whole, float(seconds[1]), sum(map(len, made)), word, said[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=None)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64])
    parser.add_argument("--prompt_tokens", type=int, default=64, help="about so many words")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=7, help="N")
    parser.add_argument("--rounds_of", type=int, default=2, help="R")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--ways", nargs="*", default=["copies", "auto", "fsdp"], help="of --parallel on all ranks")
    options = parser.parse_args()
    options.checkpoint = options.checkpoint or str(demo_folder())
    first: dict[int, Ran] = {}
    print(
        "| ranks | --parallel | prompts | start, s | s | tokens/s | to one rank | steady tokens/s | same tokens |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    steady = 0.0
    with tempfile.TemporaryDirectory() as name:
        for ranks, way in ((1, "auto"), *((options.ranks, way) for way in options.ways)):
            few: Ran | None = None
            for count in options.prompts:
                ran = run(Path(name), options, ranks, way, count)
                one = first.setdefault(count, ran)
                ratio = (ran.tokens / ran.seconds) / (one.tokens / one.seconds)
                more = ""
                if few is not None and ran.seconds > few.seconds:
                    rate = (ran.tokens - few.tokens) / (ran.seconds - few.seconds)
                    steady = steady or rate
                    more = f"{rate:,.0f} ({rate / steady:.2f})"
                few = few or ran
                print(
                    f"| {ranks} | {way} | {count} | {ran.whole_s - ran.seconds:.1f} | {ran.seconds:.2f} | "
                    f"{ran.tokens / ran.seconds:,.0f} | {ratio:.2f} | {more} | "
                    f"{'yes' if ran.word == one.word else 'no'} |",
                    flush=True,
                )
                for line in ran.each:
                    print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
