"""What decoding costs on the CPU: `PYTHONPATH=. python tests/bench_cpu.py [CHECKPOINT] [--rounds N] [--threads N]
[--batches]`.

Both sides of every comparison are interleaved in this one run, and the ratio of the medians is printed with the
spread of the single rounds' ratios. Without CHECKPOINT the embedded model is measured. Tokens are forced (nothing
stops a reply), so that both sides make the same number.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from chat.demo import DEFAULT_SYSTEM, demo_folder
from chat.tokenizer import load_tokenizer
from chat.transcript import Transcript, prompt_ids
from dist.checkpoint import open_checkpoint
from dist.engine import Engine
from dist.group import SoloGroup
from dist.model import load_model
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

PROMPT_TOKENS, NEW_TOKENS = 200, 128
TALK = (
    "Tell me about the sea, the wind and the people who live by fishing, and name three towns on the coast. ",
    "What should I cook for six guests on a cold evening? Think of soup, bread, cheese and something sweet. ",
)


class Bench:
    def __init__(self, folder: str) -> None:
        checkpoint = open_checkpoint(folder)
        self.loaded = load_model(checkpoint, SoloGroup(torch.device("cpu")), dtype="float32")
        self.tokenizer = load_tokenizer(checkpoint.tokenizer_dir, checkpoint.generation_config)
        self.engine = Engine(
            self.loaded.module, SoloGroup(torch.device("cpu")), max_positions=self.loaded.max_positions
        )

    def conversation(self, seed: int = 0) -> tuple[int, ...]:
        """PROMPT_TOKENS ids of a conversation, another one for every seed."""
        text = f"Note {seed}. " + "".join(TALK) * 8
        transcript = Transcript().with_system(DEFAULT_SYSTEM).with_user(text)
        return prompt_ids(transcript, self.tokenizer, True)[:PROMPT_TOKENS]

    def answer(self, prompts: tuple[tuple[int, ...], ...], settings: GenerationSettings) -> list[Reply]:
        turn = Turn(prompts=prompts, settings=settings, placeholder=self.tokenizer.eos_id, stop_ids=())
        events = self.engine.answer(turn, lambda: Control(settings=settings))
        return [event for event in events if isinstance(event, Reply)]

    def drop_cache(self) -> None:
        self.engine._cached.cache.truncate(0)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, rounds: int, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Time both sides in turn; a row of the medians."""
    ours(), theirs()
    a, b = [], []
    for _ in range(rounds):
        a.append(timed(ours))
        b.append(timed(theirs))
    row(name, statistics.median(a), statistics.median(b), sorted(y / x for x, y in zip(a, b)))


def row(name: str, ours: float, theirs: float, ratios: list[float]) -> None:
    """Print one row: seconds of both sides, ratio theirs / ours, range of the rounds' ratios."""
    print(
        f"{name:70}{ours:9.3f}{theirs:9.3f}{theirs / ours:8.2f}   {ratios[0]:.2f} to {ratios[-1]:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=str(demo_folder()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=64, help="how many, in the rows of many prompts")
    parser.add_argument("--batches", action="store_true", help="only the rows of many prompts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.checkpoint)
    print(f"{bench.loaded.facts}\n{options.threads} threads, {options.rounds} rounds, torch {torch.__version__}\n")
    print(f"{'(seconds: medians, or sums)':70}{'ours':>9}{'other':>9}{'ratio':>8}   range")
    if options.batches:
        together(bench, options.prompts)
        return
    prompt = bench.conversation()
    fixed = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=NEW_TOKENS)

    def cached(settings: GenerationSettings = fixed) -> list[Reply]:
        bench.drop_cache()
        return bench.answer((prompt,), settings)

    plain = fixed.with_value("decoder", "plain")
    compare("128 tokens, N = 7, R = 2: cached / plain rule", options.rounds, cached, lambda: cached(plain))
    second_turns(bench, options.rounds)
    against_generate(bench, options.rounds, prompt)
    together(bench, options.prompts)


def second_turns(bench: Bench, rounds: int) -> None:
    """Time to the first block of a second turn, with the first turn's keys and values kept and dropped."""
    first = bench.conversation()
    block = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=8)
    reply = bench.answer((first,), GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=64))[0]
    more = bench.tokenizer.encode(
        "<|im_end|>\n<|im_start|>user\nAnd why is that?<|im_end|>\n<|im_start|>assistant\n"
    )
    second = (*first, *reply.token_ids, *more)

    def kept() -> None:
        bench.engine._cached.cache.truncate(len(first) + len(reply.token_ids))
        bench.answer((second,), block)

    def dropped() -> None:
        bench.drop_cache()
        bench.answer((second,), block)

    compare(f"second turn of {len(second)} tokens, first block: kept / dropped", rounds, kept, dropped)


def against_generate(bench: Bench, rounds: int, prompt: tuple[int, ...]) -> None:
    """`refine_iter auto` and token by token, against transformers' generate (greedy, same dtype, cache on)."""
    module = bench.loaded.module
    ids = torch.tensor([prompt])
    ours: list[Reply] = []
    theirs: list[int] = []

    def generate() -> None:
        with torch.inference_mode():
            output = module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=bench.tokenizer.eos_id,
                eos_token_id=-1,
            )
        theirs[:] = output[0, len(prompt) :].tolist()

    for name, n, rounds_of_block in (("auto, N = 7", 7, "auto"), ("auto, N = 3", 3, "auto"), ("N = 0", 0, 1)):
        settings = GenerationSettings(add_eos_length=n, refine_iter=rounds_of_block, max_new_tokens=NEW_TOKENS)

        def decode(settings: GenerationSettings = settings) -> None:
            bench.drop_cache()
            ours[:] = bench.answer((prompt,), settings)

        compare(f"128 tokens: {name} / generate", rounds, decode, generate)
        same = sum(a == b for a, b in zip(ours[0].token_ids, theirs))
        print(
            f"    {ours[0].stats.tokens_per_forward:.2f} tokens per forward; {same} of {NEW_TOKENS} tokens the same"
        )


def together(bench: Bench, count: int) -> None:
    """Prompts of 40 to 70 tokens decoded in batches and one by one, a batch of them at a time."""
    settings = GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=24)
    prompts = tuple(bench.conversation(seed)[: 40 + seed % 31] for seed in range(count))
    chosen = bench.engine.rows_that_fit(70 + settings.max_new_tokens, settings.add_eos_length + 1)
    bench.answer(prompts[:2], settings)
    ours, theirs, same = [], [], 0
    for start in range(0, len(prompts), chosen):
        part = prompts[start : start + chosen]
        began = time.perf_counter()
        batch = sorted(bench.answer(part, settings), key=lambda reply: reply.row)
        between = time.perf_counter()
        single = [bench.answer((prompt,), settings)[0] for prompt in part]
        ours.append(between - began)
        theirs.append(time.perf_counter() - between)
        same += sum(one.token_ids == other.token_ids for one, other in zip(batch, single))
    name = f"{count} prompts, 24 tokens each: batches of {chosen} (the default) / one by one"
    row(name, sum(ours), sum(theirs), sorted(other / one for one, other in zip(ours, theirs)))
    rates = f"{count / sum(ours):.2f} against {count / sum(theirs):.2f} prompts a second"
    print(f"    {rates}; {same} of {count} replies the same", flush=True)


if __name__ == "__main__":
    main()
