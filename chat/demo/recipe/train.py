"""How the embedded model is made: a low-rank adapter that teaches a causal model to fill blocks in a few passes.

    python -m chat.demo.recipe.train BASE_FOLDER --start FORMER.safetensors --out adapter.safetensors

BASE_FOLDER is a Hugging Face folder (`python -m chat.demo.expand` makes it). On one GPU the whole takes under ten
minutes; the tests run a few steps of it on the CPU. The idea: behind a finished text a block of N placeholders
(EOS) is put, and the model learns to say at each of them what the text has one token later; what it said becomes
the next round's draft, and it learns to put that right too (`trainer`). All blocks of a conversation are packed
behind it in one row, each seeing the text before it and itself only (`packing`). Then the outputs take the place of
the text, with their faults, and the blocks are filled once more and again (`faults`): so it learns to go on after a
fault, and to end a text that is lost. On clean plain text its distribution is held to a teacher's, the model it
starts from. The answers that it learns are picked among several (`picking`). What its own say again and again is
unlearnt. The model card says how the adapter in the repository was made, and what this gave.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from chat.demo import DEFAULT_SYSTEM
from chat.demo.recipe import corpus, picking
from chat.demo.recipe.corpus import FREE, OPEN, SKILL, Sample
from chat.demo.recipe.faults import with_faults
from chat.demo.recipe.llama import Shape, Weights, load_base, run_layer
from chat.demo.recipe.lora import Adapter
from chat.demo.recipe.packing import COLUMNS, pack
from chat.demo.recipe.picking import Speaker, prompt_of
from chat.demo.recipe.trainer import Trainer

ANYWHERE = "Say something."


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The numbers of a training run. `seconds` or `steps`, whichever is reached first, ends it."""

    rank: int = 54
    learning_rate: float = 1.2e-3
    final: float = 0.02  # share of the learning rate that is left at the end
    rounds: int = 3
    phases: int = 3  # after each but the last, the model answers open prompts itself
    prompts: int = 10_000  # that answers are picked for before
    own_answers: int = 2560  # how many
    skills: int = 5500  # conversations that a phase draws from: of the corpus, with picked answers,
    picked: int = 6000
    held: int = 1000  # and such as only hold the model to the teacher
    rows: int = 64
    length: int = 512
    seconds: float = 370.0  # 796 steps on an H200
    steps: int = 100_000
    warmup: int = 30
    workers: int = 12
    seed: int = 1

    def rate(self, step: int, progress: float) -> float:
        """The learning rate: a short rise, then half a cosine down to its final share."""
        fallen = self.final + (1 - self.final) * (0.5 + 0.5 * math.cos(math.pi * progress))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * fallen


class Batches(IterableDataset[Tensor]):
    """Packed batches over the samples, again and again, each time in another order and with other blocks."""

    def __init__(self, samples: list[Sample], recipe: Recipe, seed: int) -> None:
        self.samples, self.recipe, self.seed = samples, recipe, seed

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        rng = random.Random(f"{self.seed} {worker.id if worker else 0}")
        while True:
            yield from pack(rng.sample(self.samples, len(self.samples)), self.recipe.rows, self.recipe.length, rng)


def word_tokens(tokenizer: Any, count: int) -> Tensor:
    """Which of the first `count` tokens have no digit and are not blank, [count]: a text that says such a token
    twice in a row has slipped."""
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(count)]
    return torch.tensor([bool(text.strip()) and not any(mark.isdigit() for mark in text) for text in texts])


def picked(
    speakers: list[Speaker],
    prompts: list[list[int]],
    model: Weights,
    trainer: Trainer,
    tokenizer: Any,
    workers: int,
) -> list[Sample]:
    """The best of the speakers' answers to each prompt, as `model` in training would draft them."""
    anywhere = corpus.opened_for(tokenizer, [("system", DEFAULT_SYSTEM), ("user", ANYWHERE)], "assistant")
    answers = picking.candidates(speakers, prompts, trainer.shape, tokenizer, workers)
    with torch.no_grad():
        rated = picking.rated(
            answers, anywhere, trainer.running(trainer.base), trainer.running(model), trainer.base["embed"], workers
        )
    found = picking.best(rated, picking.Taste())
    for name in ("plain", "drafted"):
        means = (sum(getattr(answer, name) for answer in some) / max(len(some), 1) for some in (rated, found))
        print(f"{len(found)} picked of {len(rated)}: {name}", *(f"{mean:.2f}" for mean in means), flush=True)
    return [answer.sample for answer in found]


class Run:
    """A training run: the optimizer, the clock, and what each phase trains on. Prints its figures."""

    def __init__(
        self, trainer: Trainer, tokenizer: Any, samples: list[Sample], picks: list[Sample], recipe: Recipe
    ) -> None:
        self.trainer, self.tokenizer, self.recipe = trainer, tokenizer, recipe
        self.samples, self.picks = samples, picks
        self.device = trainer.base["embed"].device
        self.rng = random.Random(recipe.seed)
        self.generator = torch.Generator(device=self.device).manual_seed(recipe.seed)
        self.optimizer = torch.optim.AdamW(trainer.adapter.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.step, self.started, self.progress = 0, 0.0, 0.0

    def train(self) -> None:
        """All phases."""
        for phase in range(self.recipe.phases):
            batches = Batches(self._drawn(phase), self.recipe, phase)
            for packed in DataLoader(batches, batch_size=None, num_workers=self.recipe.workers):
                self._learn({name: packed[:, :, index].to(self.device) for index, name in enumerate(COLUMNS)})
                if self.progress >= (phase + 1) / self.recipe.phases:
                    break
        print(f"{self.step} steps, {time.monotonic() - self.started:.0f} s", flush=True)

    def _drawn(self, phase: int) -> list[Sample]:
        """A phase's conversations: some of the corpus, picked answers, and from the second phase on the model's own
        answers: the best of several, and what must be unlearnt."""
        skills = [sample for sample in self.samples if sample.kind == SKILL]
        opened = [sample for sample in self.samples if sample.kind != SKILL]
        held = [sample for sample in self.samples if sample.kind == FREE]
        own: list[Sample] = []
        if phase:
            with torch.no_grad():
                merged = self.trainer.adapter.merged(self.trainer.base)
            count = min(self.recipe.own_answers, len(opened))
            bad = [
                sample
                for sample in corpus.answers_of_its_own(
                    merged, self.trainer.shape, self.tokenizer, self.samples, count, self.rng
                )
                if sample.kind != OPEN
            ]
            speakers = [Speaker(merged), Speaker(merged, way=(7, 4)), Speaker(merged, temperature=0.7)]
            asked = [prompt_of(sample) for sample in self.rng.sample(opened, count)]
            chosen = picked(speakers, asked, merged, self.trainer, self.tokenizer, self.recipe.workers)
            own = [*bad, *chosen]
        return [
            *self.rng.sample(skills, min(len(skills), self.recipe.skills)),
            *self.rng.sample(self.picks, min(len(self.picks), self.recipe.picked)),
            *self.rng.sample(held, min(len(held), self.recipe.held)),
            *own,
        ]

    def _learn(self, batch: dict[str, Tensor]) -> None:
        """A step on the clean batch, then one or two on its text with the faults that the model leaves there: those
        of the second or third round, in half of the blocks at first."""
        lost: Tensor | None = None
        outputs: list[Tensor] = []
        for depth in range(2 + (self.rng.random() < 0.5)):
            if depth:
                share = min(1.0, 0.5 + 2 * self.progress)
                said = outputs[self.rng.randrange(1, self.recipe.rounds)]
                batch, lost = with_faults(batch, said, share, self.trainer.words, self.generator)
            figures, outputs = self.trainer.accumulate(batch, lost)
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.step, self.progress)
            torch.nn.utils.clip_grad_norm_(self.trainer.adapter.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._report(depth, figures)

    def _report(self, depth: int, figures: dict[str, Tensor]) -> None:
        self.step += 1
        if self.step == 2 or self.step % 40 < 2:
            shown = "  ".join(f"{name} {value.item():.3f}" for name, value in figures.items())
            print(f"step {self.step}  depth {depth}  progress {self.progress:.2f}  {shown}", flush=True)
        self.started = self.started or time.monotonic()  # the first step compiles
        passed = (time.monotonic() - self.started) / self.recipe.seconds
        self.progress = min(1.0, max(self.step / self.recipe.steps, passed))


def first_picks(
    trainer: Trainer, teacher: Weights, tokenizer: Any, samples: list[Sample], recipe: Recipe
) -> list[Sample]:
    """The best answers of the base, the teacher and the adapter at its start to open prompts of the corpus."""
    with torch.no_grad():
        own = trainer.adapter.merged(trainer.base)
    speakers = [Speaker(teacher), *[Speaker(teacher, 0.7)] * 2, Speaker(trainer.base, 0.6), Speaker(own)]
    speakers += [Speaker(own, way=(7, 4)), Speaker(own, 0.7)]
    opened = [prompt_of(sample) for sample in samples if sample.kind != SKILL]
    asked = random.Random(recipe.seed).sample(opened, min(recipe.prompts, len(opened)))
    return picked(speakers, asked, own, trainer, tokenizer, recipe.workers)


def train(
    base: Weights,
    teacher: Weights,
    shape: Shape,
    tokenizer: Any,
    samples: list[Sample],
    recipe: Recipe,
    start: Path | None = None,
    picks: Path | None = None,
) -> Adapter:
    """Train an adapter on the samples, from an earlier one if `start` is given. `picks`: file of picked answers,
    read if there, else written."""
    torch.manual_seed(recipe.seed)
    adapter = Adapter(base, recipe.rank)
    if start:
        adapter.start_from(start, unscaled=True)
    on_gpu = base["embed"].device.type == "cuda"
    layer_function = torch.compile(run_layer, dynamic=False) if on_gpu else run_layer
    words = word_tokens(tokenizer, len(base["embed"])).to(base["embed"].device)
    trainer = Trainer(base, teacher, shape, adapter, layer_function, words, recipe.rounds)
    if picks and picks.exists():
        chosen = corpus.load(picks)
    else:
        chosen = first_picks(trainer, teacher, tokenizer, samples, recipe)
        if picks:
            corpus.save(chosen, picks)
    Run(trainer, tokenizer, samples, chosen, recipe).train()
    return adapter


def main() -> None:
    """Command line: build the corpus, or read it if it was built before, train, write the adapter."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="Hugging Face folder of SmolLM2-135M-Instruct")
    parser.add_argument("--start", type=Path, help="adapter to train on from, unscaled")
    parser.add_argument(
        "--teacher", type=Path, help="adapter of the teacher of plain text (that of --start, scaled)"
    )
    parser.add_argument(
        "--corpus", type=Path, default=Path("corpus.pt"), help="read if there, else built and written"
    )
    parser.add_argument("--picks", type=Path, default=Path("picks.pt"), help="picked answers, likewise")
    parser.add_argument("--out", type=Path, default=Path("adapter.safetensors"))
    parser.add_argument(
        "--keep", type=float, default=0.5, help="share of the way from the start that is kept (0.5)"
    )
    parser.add_argument("--seconds", type=float, default=Recipe().seconds)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--rows", type=int, default=Recipe().rows)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base, shape = load_base(options.base, device, torch.bfloat16)
    teacher = base
    if options.teacher or options.start:
        first = Adapter(base, Recipe().rank)
        first.start_from(options.teacher or options.start)
        with torch.no_grad():
            teacher = first.merged(base)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    if not options.corpus.exists():
        corpus.save(corpus.build(base, teacher, shape, tokenizer, corpus.Plan()), options.corpus)
    recipe = Recipe(seconds=options.seconds, steps=options.steps, rows=options.rows)
    samples = corpus.load(options.corpus)
    adapter = train(base, teacher, shape, tokenizer, samples, recipe, options.start, options.picks)
    if options.start:
        former = Adapter(base, recipe.rank)
        former.start_from(options.start, unscaled=True)
        adapter.go_back(former, options.keep)
    adapter.save(options.out)


if __name__ == "__main__":
    main()
