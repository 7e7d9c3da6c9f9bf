"""The plain rule of block refinement, written as naively as it can be: what the tests hold the decoder to."""

from __future__ import annotations

import torch

from dist.decode.sampling import choose
from dist.model.head import WholeHead
from dist.settings import GenerationSettings


@torch.no_grad()
def plain_rule(model, prompt, settings: GenerationSettings, placeholder, stop_ids, limit=10**9):
    """The reply's token ids: every pass recomputes everything, every block is run whole and cut afterwards."""
    n = settings.add_eos_length
    rounds = n + 1 if settings.refine_iter == "auto" else settings.refine_iter
    budget = min(settings.max_new_tokens, min(settings.max_length, limit) - len(prompt))
    prefix = list(prompt)
    while True:
        draft = [placeholder] * (n + 1)
        p = len(prefix)
        for _ in range(rounds):
            logits = model(torch.tensor([prefix + draft[:n]])).logits[0, p - 1 : p + n]
            if settings.samples:
                draft = choose(logits, range(p, p + n + 1), settings, WholeHead()).tolist()
            else:
                draft = logits.argmax(dim=-1).tolist()
        prefix += draft
        reply = prefix[len(prompt) :]
        ends = [i + 1 for i, token in enumerate(reply) if token in stop_ids]
        if ends or len(reply) >= budget:
            return tuple(reply[: min([budget, *ends[:1]])])
