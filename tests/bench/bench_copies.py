"""A prompt file by copies of the model, against one rank and against one model cut over all: tokens a second.

    PYTHONPATH=. python tests/bench/bench_copies.py [CHECKPOINT] [--ranks N] [--prompts N] [--ways WAY ...]

Each way runs the whole program twice, with few prompts and with all of them; the difference of the two spans leaves
the start out. Replies are cut by their budget alone where the model names no stop token early. For the figures of a
7B shape: CHECKPOINT as tests/bench/bench_gpu.py writes it, --ranks 4 --prompts 256 --prompt_tokens 512 --new 128.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import paths  # noqa: F401
from ranks import rank_environment, torchrun

from chat.demo import demo_folder

TALK = "Tell me about the sea, the wind and the people who live by fishing, and name three towns on the coast. "


def run(folder: Path, options: argparse.Namespace, ranks: int, parallel: str, count: int) -> tuple[float, int, str]:
    """Seconds of the whole program, tokens made, and a word for all of them together."""
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
        *("--max_new_tokens", str(options.new), "--no-use_chat_template"),
    ]
    command = torchrun(ranks, *arguments) if ranks > 1 else [sys.executable, *arguments]
    environment = rank_environment(DLLM_RUN_DIR=str(folder), OMP_NUM_THREADS=str(options.threads))
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    made = [json.loads(line)["token_ids"] for line in output.read_text().splitlines()]
    return seconds, sum(map(len, made)), str(hash(str(made)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=None)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--few", type=int, default=8, help="prompts of the shorter run")
    parser.add_argument("--prompt_tokens", type=int, default=64, help="about so many words")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=7, help="N")
    parser.add_argument("--rounds_of", type=int, default=2, help="R")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--ways", nargs="*", default=["copies", "auto", "fsdp"], help="of --parallel on all ranks")
    options = parser.parse_args()
    options.checkpoint = options.checkpoint or str(demo_folder())
    rates: dict[str, float] = {}
    print("| ranks | --parallel | tokens/s | to one rank | same tokens |\n|---|---|---|---|---|", flush=True)
    first = ""
    with tempfile.TemporaryDirectory() as name:
        for ranks, way in ((1, "auto"), *((options.ranks, way) for way in options.ways)):
            few_s, few_tokens, _ = run(Path(name), options, ranks, way, options.few)
            all_s, all_tokens, word = run(Path(name), options, ranks, way, options.prompts)
            first = first or word
            rate = (all_tokens - few_tokens) / (all_s - few_s)
            rates[f"{ranks} {way}"] = rate
            ratio, same = rate / rates["1 auto"], "yes" if word == first else "no"
            print(f"| {ranks} | {way} | {rate:,.1f} | {ratio:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
