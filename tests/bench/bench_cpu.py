"""What decoding costs on the CPU, both sides of every comparison interleaved in one run.

    python tests/bench/bench_cpu.py [CHECKPOINT] [--rounds N] [--only PARTS]       prints tables in Markdown

Each row has the medians of the rounds, their ratio, and the range of the single rounds' ratios. Without CHECKPOINT
the embedded model is measured. Nothing stops a reply, so that both sides make the same number of tokens. Threads
wait asleep, as run_chat.sh has them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import paths  # noqa: F401

# Before torch reads it; `bench_ranks` starts children that differ.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from bench_ranks import compare_defaults, measure_verdicts

from chat.demo import DEFAULT_SYSTEM, demo_folder
from chat.demo.recipe.conversations import test_questions
from chat.demo.recipe.corpus import opened_for
from chat.text.prompt import prompt_ids
from chat.text.tokenizer import load_tokenizer
from chat.text.transcript import Transcript
from dist.checkpoint.open import open_checkpoint
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.model.load import load_model
from dist.model.onednn import pack, packing_pays, unpack
from dist.protocol import Control, Group, Reply, Turn
from dist.settings import GenerationSettings

PROMPT_TOKENS, NEW_TOKENS = 200, 128
GENERATE = "transformers `generate`"
FIXED = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=NEW_TOKENS)
ONE_TOKEN = GenerationSettings(add_eos_length=0, refine_iter=1, max_new_tokens=1)
TALK = (
    "Tell me about the sea, the wind and the people who live by fishing, and name three towns on the coast. ",
    "What should I cook for six guests on a cold evening? Think of soup, bread, cheese and something sweet. ",
)
SECOND_MESSAGE = "<|im_end|>\n<|im_start|>user\nAnd why is that?<|im_end|>\n<|im_start|>assistant\n"


class Bench:
    """The model, opened as the program opens it."""

    def __init__(self, folder: str, group: Group, dtype: str) -> None:
        checkpoint = open_checkpoint(folder)
        self.loaded = load_model(checkpoint, group, dtype=dtype)
        self.packs = packing_pays(self.loaded.device, self.loaded.placement)
        self.tokenizer = load_tokenizer(checkpoint.tokenizer_dir, checkpoint.generation_config)
        self.engine = Engine(
            self.loaded.module,
            group,
            max_positions=self.loaded.max_positions,
            head=self.loaded.head,
            packed=self.packs,
        )

    def conversation(self, seed: int = 0) -> tuple[int, ...]:
        """PROMPT_TOKENS ids of a conversation, another one for every seed."""
        text = f"Note {seed}. " + "".join(TALK) * 8
        transcript = Transcript().with_system(DEFAULT_SYSTEM).with_user(text)
        return prompt_ids(transcript, self.tokenizer, True)[:PROMPT_TOKENS]

    def answer(
        self, prompts: tuple[tuple[int, ...], ...], settings: GenerationSettings, stop_ids: tuple[int, ...] = ()
    ) -> list[Reply]:
        turn = Turn(prompts=prompts, settings=settings, placeholder=self.tokenizer.eos_id, stop_ids=stop_ids)
        events = self.engine.answer(turn, lambda: Control(settings=settings))
        return [event for event in events if isinstance(event, Reply)]

    def drop_cache(self) -> None:
        """Have another conversation, so that nothing kept is of use."""
        self.answer(((self.tokenizer.eos_id,),), ONE_TOKEN)

    def fresh(self, prompt: tuple[int, ...], settings: GenerationSettings) -> float:
        """Seconds of a reply without anything kept."""
        self.drop_cache()
        return timed(lambda: self.answer((prompt,), settings))

    def pass_seconds(self) -> float:
        """Seconds of a cached pass with N = 7, the mean of a reply's."""
        prompts, settings = (self.conversation(),), FIXED.with_value("max_new_tokens", 32)
        self.answer(prompts, settings)  # reads the prompt
        stats = self.answer(prompts, settings)[0].stats
        return stats.decode_s / stats.forwards


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> None:
    """Let both sides time themselves in turn; a row of the medians."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    a, b = (statistics.median(side) for side in zip(*pairs))
    row(name, a, b, [other / one for one, other in pairs])


def row(name: str, ours: float, theirs: float, ratios: list[float]) -> None:
    """Print one row: seconds of both sides, ratio theirs / ours, range of the rounds' ratios."""
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"| {name} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f} | {spread} |", flush=True)


def cached_against_plain(bench: Bench, rounds: int) -> None:
    prompt, plain = bench.conversation(), FIXED.with_value("decoder", "plain")
    for settings in (FIXED, plain):
        bench.fresh(prompt, settings.with_value("max_new_tokens", 8))
    name = f"{NEW_TOKENS} tokens after {PROMPT_TOKENS}, N = 7, R = 2: cached / plain rule"
    compare(name, rounds, lambda: bench.fresh(prompt, FIXED), lambda: bench.fresh(prompt, plain))


def packed_against_plain_weights(bench: Bench, rounds: int) -> None:
    """What packing saves a cached reply; leaves the model as it was."""
    if not bench.packs:
        print("Weights are not packed on this CPU.")
        return
    prompt, settings = bench.conversation(), FIXED.with_value("max_new_tokens", 32)

    def unpacked() -> float:
        unpack(bench.loaded.module)
        try:
            return bench.fresh(prompt, settings)
        finally:
            pack(bench.loaded.module)

    compare("32 tokens, cached: weights packed / plain", rounds, lambda: bench.fresh(prompt, settings), unpacked)


def second_turns(bench: Bench, rounds: int) -> None:
    """Time to the first block of a second turn, with the first turn's keys and values kept and dropped."""
    first = bench.conversation()
    reply = bench.answer((first,), FIXED)[0]
    second = (*first, *reply.token_ids, *bench.tokenizer.encode(SECOND_MESSAGE))
    block = FIXED.with_value("max_new_tokens", FIXED.add_eos_length + 1)

    def kept() -> float:
        bench.fresh(first, FIXED)
        return timed(lambda: bench.answer((second,), block))

    bench.fresh(second, block)
    name = f"second turn of {len(second)} tokens, first block: keys and values kept / dropped"
    compare(name, rounds, kept, lambda: bench.fresh(second, block))


def against_generate(bench: Bench, rounds: int, clock: Callable[[], float]) -> None:
    """`refine_iter auto` against transformers' generate (greedy, cache on) with the very same module.

    `clock` may be that of this process's CPU time, which other load disturbs less; then take one thread.
    So that both are of one run, blocks refined until they are exact are timed too, and a window without look-ups.
    """
    prompt = bench.conversation()
    window = GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=NEW_TOKENS)
    sides = {
        "window": window,
        "window, drafts own": window.with_value("drafts", "own"),
        "blocks": window.with_value("refine_iter", 8),
    }
    by_side(bench, rounds, clock, sides, (prompt,), ())


def questions(bench: Bench, count: int, rounds: int, clock: Callable[[], float]) -> None:
    """The same over held-out questions of the embedded model, evenly drawn, whose replies end where they end."""
    held_out = test_questions()
    asked = held_out[:: max(1, len(held_out) // count)][:count]
    prompts = tuple(tuple(opened_for(bench.tokenizer.backend, one.messages, "assistant")) for one in asked)
    longest = GenerationSettings(max_new_tokens=192)
    sides = {"blocks, N = 7": replace(longest, add_eos_length=7, refine_iter=8)}
    sides |= {f"window, N = {n}": replace(longest, add_eos_length=n, refine_iter="auto") for n in (3, 7, 15)}
    by_side(bench, rounds, clock, sides, prompts, bench.tokenizer.stop_ids)


def by_side(
    bench: Bench,
    rounds: int,
    clock: Callable[[], float],
    sides: Mapping[str, GenerationSettings],
    prompts: Sequence[tuple[int, ...]],
    stop_ids: tuple[int, ...],
) -> None:
    """A row for every side: its replies to the prompts, one by one, and those of `generate`; all in turn."""
    replies: dict[str, list[Reply]] = {}
    seconds: dict[str, list[float]] = {name: [0.0] * rounds for name in (*sides, GENERATE)}
    for number in range(rounds):
        replies, theirs = {name: [] for name in sides}, list[list[int]]()
        for prompt in prompts:
            for name, settings in sides.items():
                bench.drop_cache()
                began = clock()
                replies[name] += bench.answer((prompt,), settings, stop_ids)
                seconds[name][number] += clock() - began
            began = clock()
            theirs.append(generate(bench, prompt, next(iter(sides.values())).max_new_tokens, stop_ids))
            seconds[GENERATE][number] += clock() - began
    other = seconds.pop(GENERATE)
    for name, mine in seconds.items():
        ratios = [that / one for one, that in zip(mine, other)]
        row(f"`auto`, {name} / {GENERATE}", statistics.median(mine), statistics.median(other), ratios)
        tokens, passes = sum(map(len, theirs)), sum(reply.stats.forwards for reply in replies[name])
        same = sum(list(reply.token_ids) == one for reply, one in zip(replies[name], theirs))
        rate = f"{tokens} tokens, {tokens / passes:.2f} a forward"
        print(f"| ... {rate}; {same} of {len(theirs)} replies the same | | | | |", flush=True)


def widths(bench: Bench, rounds: int) -> None:
    """What a window's pass costs by its N, in CPU time of all threads: whether fewer places would pay."""
    prompt, lengths = bench.conversation(), (0, 1, 3, 7, 15)
    spent: dict[int, list[float]] = {n: [] for n in lengths}
    for _ in range(rounds):
        for n in lengths:
            settings = GenerationSettings(add_eos_length=n, refine_iter="auto", max_new_tokens=24, drafts="own")
            bench.answer((prompt,), settings)  # reads the prompt
            began = time.process_time()
            (reply,) = bench.answer((prompt,), settings)
            spent[n].append((time.process_time() - began) / reply.stats.forwards)
    for n in lengths:
        ratios = [seven / one for one, seven in zip(spent[n], spent[7])]
        row(f"a pass of a window, N = {n} / N = 7", *map(statistics.median, (spent[n], spent[7])), ratios)


def generate(bench: Bench, prompt: tuple[int, ...], most: int, stop_ids: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = bench.loaded.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=bench.tokenizer.eos_id,
            # One past the vocabulary: nothing stops it.
            eos_token_id=list(stop_ids) or bench.loaded.module.get_input_embeddings().num_embeddings,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def batches(bench: Bench, count: int) -> None:
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
    name = f"{count} prompts, 24 tokens each, `auto`, N = 7: batches of {chosen} (the default) / one by one"
    row(name, sum(ours), sum(theirs), [other / one for one, other in zip(ours, theirs)])
    rates = f"{count / sum(ours):.2f} against {count / sum(theirs):.2f} prompts a second"
    print(f"| ... {rates}; {same} of {count} replies the same | | | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=str(demo_folder()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu_time", action="store_true", help="compare with generate by CPU time")
    parser.add_argument(
        "--prompts", type=int, default=16, help="how many, in the rows of many prompts and of questions"
    )
    parser.add_argument(
        "--only", default="plain,packed,second,generate,batches,verdicts,defaults", help="parts, comma-separated"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.checkpoint, SoloGroup(torch.device("cpu")), "float32")
    clock = time.process_time if options.cpu_time else time.perf_counter
    parts = {
        "plain": lambda: cached_against_plain(bench, options.rounds),
        "packed": lambda: packed_against_plain_weights(bench, options.rounds),
        "second": lambda: second_turns(bench, options.rounds),
        "generate": lambda: against_generate(bench, options.rounds, clock),
        "questions": lambda: questions(bench, options.prompts, options.rounds, clock),
        "widths": lambda: widths(bench, options.rounds),
        "batches": lambda: batches(bench, options.prompts),
        "verdicts": lambda: measure_verdicts(bench.pass_seconds()),
        "defaults": lambda: compare_defaults(options.checkpoint, options.rounds, options.threads),
    }
    print(f"{bench.loaded.facts.path}, {bench.loaded.facts.dtype}")
    print(f"{options.threads} threads, {options.rounds} rounds, torch {torch.__version__}\n")
    print("| | ours, s | other, s | ratio | range |\n|---|---|---|---|---|", flush=True)
    for part in options.only.split(","):
        parts[part]()


if __name__ == "__main__":
    main()
