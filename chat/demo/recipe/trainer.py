"""The losses of one batch and their gradients. Knows no files, no text, no optimizer.

A batch's blocks are filled in a few rounds, each fed with the last one's output. Each place learns the true token,
as long as the block's text before it is true. Where the model has strayed, but said nothing that the base would
never say, it learns what the base says next instead: to go on from its own words, and not to put the likeliest
token at every place, which makes "a a a". To say the token before once more is unlearnt besides, in plain text
too, and never taught: a draft one place ahead ("of and Juliet") would ask for "and" behind "and", and drafts
look like plain text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from chat.demo.recipe.faults import before_in_block, preceding
from chat.demo.recipe.llama import (
    LINEARS,
    NORMS,
    LayerFunction,
    LayerWeights,
    Shape,
    Weights,
    hidden_states,
    unstack_layers,
)
from chat.demo.recipe.lora import Adapter
from chat.demo.recipe.packing import HOLD, SAY, SHUN, next_draft, sight

MAX_HELD = 8192  # positions a batch whose distribution is compared with the teacher's
MAX_PLAIN = 12288  # positions of plain text a batch that are looked at for slips
SLIP = 0.02  # probability from which on a token said twice is a slip


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """What counts how much, beside the likelihood of the blocks' tokens."""

    decay: float = 0.93  # a block's place over the one before
    again: float = 4.0  # a token that wrongly says again the one before
    slip: float = 0.5  # the same in plain text
    fit: float = 0.03  # least probability by the base of a token that may be gone on from
    say: float = 2.0  # the truth in plain text
    hold: float = 4.0  # the divergence from the teacher
    shun: float = 0.5  # what its own answers repeat


def divergence(hidden: Tensor, teacher_hidden: Tensor, embed: Tensor) -> Tensor:
    """Mean of KL(teacher || model) and KL(model || teacher) over P positions, [P, D] hidden states."""
    wanted = functional.log_softmax((teacher_hidden @ embed.T).float(), dim=-1)
    said = functional.log_softmax((hidden @ embed.T).float(), dim=-1)
    return ((wanted.exp() - said.exp()) * (wanted - said)).sum(-1).mean() / 2


def unlikelihood(hidden: Tensor, embed: Tensor, shunned: Tensor) -> Tensor:
    """Mean of -log(1 - p) over P positions, p the probability of the token to shun there. Its gradient stays
    bounded where p is near 1."""
    logits = (hidden @ embed.T).float()
    others = logits.scatter(1, shunned[:, None], -math.inf)
    return (logits.logsumexp(-1) - others.logsumexp(-1)).mean()


def is_ahead(given: Tensor, truth: Tensor, targets: Tensor, words: Tensor) -> Tensor:
    """Which targets would only say again the word's token that the place was fed, where another was due: [P]."""
    return (targets == given) & (targets != truth) & words[targets]


class Trainer:
    """The base, the teacher of plain text, the adapter, and the passes over a batch."""

    def __init__(
        self,
        base: Weights,
        teacher: Weights,
        shape: Shape,
        adapter: Adapter,
        layer_function: LayerFunction,
        words: Tensor,
        rounds: int = 3,
        weights: LossWeights | None = None,
    ) -> None:
        self.base, self.shape, self.adapter, self.layer_function = base, shape, adapter, layer_function
        self.base_layers, self.teacher_layers = unstack_layers(base), unstack_layers(teacher)
        self.words, self.rounds, self.weights = words, rounds, weights or LossWeights()

    def _pass(
        self, layers: list[LayerWeights], batch: dict[str, Tensor], tokens: Tensor, allowed: Tensor
    ) -> Tensor:
        return hidden_states(
            self.base, layers, self.shape, tokens, batch["position"], allowed, layer_function=self.layer_function
        )

    def running(self, weights: Weights) -> Callable[[Tensor, dict[str, Tensor], Tensor], Tensor]:
        """A pass of a model over a packed batch, as `picking` wants it."""
        layers = unstack_layers(weights)
        return lambda tokens, batch, allowed: self._pass(layers, batch, tokens, allowed)

    def accumulate(
        self, batch: dict[str, Tensor], lost: Tensor | None = None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Gradients of one batch into the adapter; the figures by name, and each round's outputs [rows, length].
        Nothing is learnt at the blocks' places marked `lost`."""
        # Merged weights are leaves for all rounds; their gradients go on to the adapter once.
        merged = self.adapter.merged(self.base)
        leaves = {name: [part.detach().requires_grad_() for part in merged[name].unbind(0)] for name in LINEARS}
        norms = [merged[name].unbind(0) for name in NORMS]
        layers = [list(parts) for parts in zip(*norms, *(leaves[name] for name in LINEARS))]
        allowed, tokens = sight(batch), batch["token"]
        in_block = (batch["block"] > 0) & (batch["target"] >= 0)
        weights = self.weights.decay ** batch["offset"].float()
        if lost is not None:
            weights = weights * ~lost
        figures: dict[str, Tensor] = {}
        outputs = []
        for index in range(self.rounds):
            hidden = self._pass(layers, batch, tokens, allowed)
            loss, said = self._block_loss(hidden, batch, in_block, weights, allowed, tokens)
            figures[f"round{index + 1}"] = loss.detach()
            figures[f"right{index + 1}"] = (said == batch["target"])[in_block].float().mean()
            if index == 0:
                loss = loss + self._plain_losses(hidden, batch, allowed, figures)
            loss.backward()  # type: ignore[no-untyped-call]
            tokens = next_draft(batch, said, index)
            outputs.append(said)
        grads = [torch.stack([part.grad for part in leaves[name] if part.grad is not None]) for name in LINEARS]
        torch.autograd.backward([merged[name] for name in LINEARS], grads)
        return figures, outputs

    def _block_loss(
        self,
        hidden: Tensor,
        batch: dict[str, Tensor],
        in_block: Tensor,
        weights: Tensor,
        allowed: Tensor,
        given: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one round, and what it says, [rows, length]; `given`: the tokens that it was fed."""
        chances = functional.log_softmax((hidden[in_block] @ self.base["embed"].T).float(), dim=-1)
        chosen = chances.detach().argmax(-1)
        said = torch.zeros_like(batch["token"]).masked_scatter(in_block, chosen)
        before = preceding(batch, said)
        targets = self.block_targets(batch, in_block, said, before, allowed)
        weight = weights[in_block] * ~is_ahead(given[in_block], batch["truth"][in_block], targets, self.words)
        unlikely = -chances.gather(1, targets[:, None])[:, 0]
        again = (chosen == before[in_block]) & (chosen != targets)
        # The bound keeps the logarithm finite.
        repeat = -torch.log1p(-chances[again].gather(1, chosen[again, None])[:, 0].exp().clamp(max=1 - 1e-6))
        loss = (unlikely * weight).sum() + self.weights.again * (repeat * weight[again]).sum()
        return loss / weight.sum().clamp(min=1e-6), said

    @torch.no_grad()
    def block_targets(
        self, batch: dict[str, Tensor], in_block: Tensor, said: Tensor, before: Tensor, allowed: Tensor
    ) -> Tensor:
        """What should be said at the blocks' places, [P]: the true token; but, after words that are not the true
        ones and yet fit, what the base says next."""
        tokens = torch.where(batch["block"] > 0, before, batch["token"])
        logits = self._pass(self.base_layers, batch, tokens, allowed)[in_block] @ self.base["embed"].T
        true, mine = batch["target"], said[in_block]
        chance = logits.gather(1, mine[:, None])[:, 0].float() - logits.logsumexp(-1).float()
        unfit = (chance < math.log(self.weights.fit)) | ((mine == before[in_block]) & (mine != true[in_block]))
        unfit = torch.zeros_like(in_block).masked_scatter(in_block, unfit)
        strayed = before_in_block(batch, in_block & (said != true)) > 0
        led = (batch["led"] > 0) & strayed & (before_in_block(batch, unfit) == 0)
        return torch.where(led[in_block], logits.argmax(-1), true[in_block])

    def _plain_losses(
        self, hidden: Tensor, batch: dict[str, Tensor], allowed: Tensor, figures: dict[str, Tensor]
    ) -> Tensor:
        """The losses on plain text, by role."""
        embed, total = self.base["embed"], hidden.new_zeros((), dtype=torch.float32)
        say = batch["role"] == SAY
        if bool(say.any()):
            loss = functional.cross_entropy((hidden[say] @ embed.T).float(), batch["target"][say])
            figures["say"] = loss.detach()
            total = total + self.weights.say * loss
        hold = (batch["role"] == HOLD).flatten().nonzero().flatten()
        if len(hold):
            hold = hold[torch.randperm(len(hold), device=hold.device)[:MAX_HELD]]
            with torch.no_grad():
                wanted = self._pass(self.teacher_layers, batch, batch["token"], allowed).flatten(0, 1)[hold]
            loss = divergence(hidden.flatten(0, 1)[hold], wanted, embed)
            figures["hold"] = loss.detach()
            total = total + self.weights.hold * loss
        loss = self._slip_loss(hidden, batch)
        figures["slip"] = loss.detach()
        total = total + self.weights.slip * loss
        shun = batch["role"] == SHUN
        if bool(shun.any()):
            loss = unlikelihood(hidden[shun], embed, batch["target"][shun])
            figures["shun"] = loss.detach()
            total = total + self.weights.shun * loss
        return total

    def _slip_loss(self, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Unlikelihood of saying a word's token again in plain text, where that is likely at all and not true."""
        token = batch["token"]
        looked = (batch["block"] == 0) & (batch["sample"] >= 0) & self.words[token] & (batch["target"] != token)
        places = looked.flatten().nonzero().flatten()
        places = places[torch.randperm(len(places), device=places.device)[:MAX_PLAIN]]
        with torch.no_grad():
            logits = hidden.detach().flatten(0, 1)[places] @ self.base["embed"].T
            again = token.flatten()[places]
            likely = logits.gather(1, again[:, None])[:, 0].float() - logits.logsumexp(-1).float() > math.log(SLIP)
        places, again = places[likely], again[likely]
        if not len(places):
            return hidden.new_zeros((), dtype=torch.float32)
        return unlikelihood(hidden.flatten(0, 1)[places], self.base["embed"], again)
