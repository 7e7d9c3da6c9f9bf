"""How the embedded model is made: a low-rank adapter that teaches a causal model to fill blocks in a few passes.

    python -m chat.demo.recipe.train BASE_FOLDER --out adapter.safetensors --seconds 376

BASE_FOLDER is a Hugging Face folder (`python -m chat.demo.expand` makes it). On one H100 the whole takes under ten
minutes; the tests run a few steps of it on the CPU. The idea: behind a finished text a block of N placeholders
(EOS) is put, and the model learns to say at each of them what the true text has one token later; what it said
becomes the next round's draft, and it learns to mend that too. All blocks of a conversation are packed behind it in
one row, each seeing the text before it and itself only. What it answers must stay what the base would answer, so on
plain text its distribution is held to the base's, on answers of its own above all: else a single odd token makes it
think that it is inside a draft. The divergence is taken both ways, for a token that the base would never say costs
much only where it is measured by what the model says. What remains of that goes when the trained adapter is scaled
down a little. What its own answers say again and again is unlearnt (the base loops on two open questions in five).
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
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from chat.demo.adapter import write_adapter
from chat.demo.recipe import corpus
from chat.demo.recipe.corpus import FREE, LOOP, OPEN, Sample
from chat.demo.recipe.llama import (
    LINEARS,
    NORMS,
    LayerFunction,
    LayerWeights,
    Shape,
    Weights,
    hidden_states,
    load_base,
    run_layer,
    unstack_layers,
)
from chat.demo.recipe.packing import COLUMNS, HOLD, SAY, SHUN, next_draft, pack, sight

MAX_TOLD = 8192  # positions a round whose distribution is compared with the base's


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The numbers of a training run. `seconds` or `steps`, whichever is reached first, ends it."""

    rank: int = 27
    learning_rate: float = 3e-3
    rounds: int = 3
    decay: float = 0.85  # weight of a block's position over that of the one before
    say: float = 2.0  # weight of the loss on skills' plain text
    hold: float = 4.0  # weight of the divergence from the base
    shun: float = 0.5  # weight of the loss on what its own answers repeat
    phases: int = 6  # after each but the last, the model answers open prompts itself
    own_answers: int = 3072  # how many
    rows: int = 64
    length: int = 512
    seconds: float = 376.0  # 1,005 steps on an H100
    steps: int = 100_000
    warmup: int = 30
    workers: int = 4
    keep: float = 0.9  # share of the trained change that goes into the file
    seed: int = 1


# ---- 1. The adapter ---------------------------------------------------------------------------------------------


class Adapter(torch.nn.Module):
    """B [layers, out, rank] and A [layers, rank, in] for each kind of linear layer; B starts at zero."""

    def __init__(self, base: Weights, rank: int) -> None:
        super().__init__()
        self.left = torch.nn.ParameterDict()
        self.right = torch.nn.ParameterDict()
        for name in LINEARS:
            layers, outs, ins = base[name].shape
            device = base[name].device
            right = (torch.rand(layers, rank, ins, device=device) * 2 - 1) / math.sqrt(ins)
            self.left[name] = torch.nn.Parameter(torch.zeros(layers, outs, rank, device=device))
            self.right[name] = torch.nn.Parameter(right)

    def merged(self, base: Weights) -> Weights:
        """The base's weights with B A added, rounded as the merged checkpoint will be."""
        changed = {
            name: (base[name].float() + self.left[name] @ self.right[name]).to(base[name].dtype) for name in LINEARS
        }
        return base | changed

    def save(self, file: Path, keep: float = 1.0) -> None:
        """Write the adapter file; lora_alpha is the rank times `keep`, the share of the change that is kept."""
        pairs = {}
        for name, part in LINEARS.items():
            for index, (left, right) in enumerate(zip(self.left[name], self.right[name])):
                pairs[f"model.layers.{index}.{part}.{name}.weight"] = (left, right)
        write_adapter(file, pairs, keep * self.right["q_proj"].shape[1])


# ---- 2. The losses ----------------------------------------------------------------------------------------------


def weighted_loss(hidden: Tensor, embed: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean cross-entropy at P positions, [P, D] hidden states; and the tokens the model would say, [P]."""
    logits = hidden @ embed.T
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6), logits.detach().argmax(-1)


def divergence(hidden: Tensor, base_hidden: Tensor, embed: Tensor) -> Tensor:
    """Mean of KL(base || model) and KL(model || base) over P positions."""
    told = functional.log_softmax((base_hidden @ embed.T).float(), dim=-1)
    said = functional.log_softmax((hidden @ embed.T).float(), dim=-1)
    return ((told.exp() - said.exp()) * (told - said)).sum(-1).mean() / 2


def unlikelihood(hidden: Tensor, embed: Tensor, shunned: Tensor) -> Tensor:
    """Mean of -log(1 - p) over P positions, p the probability of the token to shun there. Its gradient stays
    bounded where p is near 1."""
    logits = (hidden @ embed.T).float()
    others = logits.scatter(1, shunned[:, None], -math.inf)
    return (logits.logsumexp(-1) - others.logsumexp(-1)).mean()


class Trainer:
    """The base, the adapter's leaves of one step, and the passes over a batch."""

    def __init__(self, base: Weights, shape: Shape, recipe: Recipe, layer_function: LayerFunction) -> None:
        self.base, self.shape, self.recipe, self.layer_function = base, shape, recipe, layer_function
        self.base_layers = unstack_layers(base)
        self.adapter = Adapter(base, recipe.rank)

    def _pass(
        self, layers: list[LayerWeights], batch: dict[str, Tensor], tokens: Tensor, allowed: Tensor
    ) -> Tensor:
        return hidden_states(
            self.base, layers, self.shape, tokens, batch["position"], allowed, layer_function=self.layer_function
        )

    def accumulate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of one batch into the adapter; the losses by name."""
        # Merged weights are leaves for all rounds; their gradients go on to the adapter once.
        merged = self.adapter.merged(self.base)
        leaves = {name: [part.detach().requires_grad_() for part in merged[name].unbind(0)] for name in LINEARS}
        norms = [merged[name].unbind(0) for name in NORMS]
        layers = [list(parts) for parts in zip(*norms, *(leaves[name] for name in LINEARS))]
        allowed, losses, tokens = sight(batch), {}, batch["token"]
        in_block = (batch["block"] > 0) & (batch["target"] >= 0)
        for index in range(self.recipe.rounds):
            hidden = self._pass(layers, batch, tokens, allowed)
            weights = self.recipe.decay ** batch["offset"][in_block].float()
            loss, said = weighted_loss(hidden[in_block], self.base["embed"], batch["target"][in_block], weights)
            losses[f"round{index + 1}"] = loss.detach()
            losses[f"right{index + 1}"] = (said == batch["target"][in_block]).float().mean()
            if index == 0:
                loss = loss + self._plain_losses(hidden, batch, allowed, losses)
            loss.backward()  # type: ignore[no-untyped-call]
            tokens = next_draft(batch, torch.zeros_like(tokens).masked_scatter(in_block, said), index)
        grads = [torch.stack([part.grad for part in leaves[name] if part.grad is not None]) for name in LINEARS]
        torch.autograd.backward([merged[name] for name in LINEARS], grads)
        return losses

    def _plain_losses(
        self, hidden: Tensor, batch: dict[str, Tensor], allowed: Tensor, losses: dict[str, Tensor]
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        say = batch["role"] == SAY
        if bool(say.any()):
            targets = batch["target"][say]
            loss, _ = weighted_loss(hidden[say], self.base["embed"], targets, torch.ones_like(targets).float())
            losses["say"] = loss.detach()
            total = total + self.recipe.say * loss
        hold = (batch["role"] == HOLD).flatten().nonzero().flatten()
        if len(hold):
            hold = hold[torch.randperm(len(hold), device=hold.device)[:MAX_TOLD]]
            with torch.no_grad():
                told = self._pass(self.base_layers, batch, batch["token"], allowed).flatten(0, 1)[hold]
            loss = divergence(hidden.flatten(0, 1)[hold], told, self.base["embed"])
            losses["hold"] = loss.detach()
            total = total + self.recipe.hold * loss
        shun = batch["role"] == SHUN
        if bool(shun.any()):
            loss = unlikelihood(hidden[shun], self.base["embed"], batch["target"][shun])
            losses["shun"] = loss.detach()
            total = total + self.recipe.shun * loss
        return total


# ---- 3. The loop ------------------------------------------------------------------------------------------------


class Batches(IterableDataset[Tensor]):
    """Packed batches over the samples, again and again, each time in another order and with other blocks."""

    def __init__(self, samples: list[Sample], recipe: Recipe, seed: int) -> None:
        self.samples, self.recipe, self.seed = samples, recipe, seed

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        rng = random.Random(f"{self.seed} {worker.id if worker else 0}")
        while True:
            yield from pack(rng.sample(self.samples, len(self.samples)), self.recipe.rows, self.recipe.length, rng)


def train(base: Weights, shape: Shape, tokenizer: Any, samples: list[Sample], recipe: Recipe) -> Adapter:
    """Train an adapter on the samples, and on the model's own answers as they come to be. Prints its figures."""
    device = base["embed"].device
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    trainer = Trainer(
        base, shape, recipe, torch.compile(run_layer, dynamic=False) if device.type == "cuda" else run_layer
    )
    optimizer = torch.optim.AdamW(trainer.adapter.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    step, started, progress, own = 0, 0.0, 0.0, list[Sample]()
    for phase in range(recipe.phases):
        # Its own answers are every fourth conversation, each there twice with other blocks.
        mixed = rng.sample(samples, min(len(samples), 6 * len(own))) + 2 * own if own else samples
        loader = DataLoader(Batches(mixed, recipe, phase), batch_size=None, num_workers=recipe.workers)
        for packed in loader:
            batch = {name: packed[:, :, index].to(device) for index, name in enumerate(COLUMNS)}
            losses = trainer.accumulate(batch)
            rate = min(1.0, (step + 1) / recipe.warmup) * (0.5 + 0.5 * math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate
            torch.nn.utils.clip_grad_norm_(trainer.adapter.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == 2 or step % 50 == 0:
                figures = "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
                print(f"step {step}  progress {progress:.2f}  {figures}", flush=True)
            started = started or time.monotonic()  # the first step compiles
            progress = min(1.0, max(step / recipe.steps, (time.monotonic() - started) / recipe.seconds))
            if progress >= (phase + 1) / recipe.phases:
                break
        if phase + 1 < recipe.phases:
            with torch.no_grad():
                merged = trainer.adapter.merged(base)
            own = corpus.answers_of_its_own(merged, shape, tokenizer, samples, recipe.own_answers, rng)
            good, held, loops = (sum(sample.kind == kind for sample in own) for kind in (OPEN, FREE, LOOP))
            print(f"own answers: {good} good, {held} garbage or run on, {loops} loop", flush=True)
    print(f"{step} steps, {time.monotonic() - started:.0f} s", flush=True)
    return trainer.adapter


def main() -> None:
    """Command line: build the corpus, or read it if it was built before, train, write the adapter."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="Hugging Face folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--corpus", type=Path, default=Path("corpus.pt"), help="read if there, else built and written"
    )
    parser.add_argument("--out", type=Path, default=Path("adapter.safetensors"))
    parser.add_argument("--seconds", type=float, default=Recipe().seconds)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--rows", type=int, default=Recipe().rows)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base, shape = load_base(options.base, device, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    if not options.corpus.exists():
        corpus.save(corpus.build(base, shape, tokenizer, corpus.Plan()), options.corpus)
    recipe = Recipe(seconds=options.seconds, steps=options.steps, rows=options.rows)
    train(base, shape, tokenizer, corpus.load(options.corpus), recipe).save(options.out, recipe.keep)


if __name__ == "__main__":
    main()
