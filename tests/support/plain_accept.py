"""The plain rule with the setting `accept`, written as naively as it can be: what the tests hold the decoder to."""

from __future__ import annotations

import torch

from dist.decode.sampling import choose
from dist.model.head import WholeHead
from dist.settings import GenerationSettings


@torch.no_grad()
def plain_accept(model, prompt, settings: GenerationSettings, placeholder, stop_ids, limit=10**9):
    """The reply's tokens: each pass reads everything; a window's passes, and a block's last, take sure choices."""
    text, tail, draft, passes = list(prompt), [], None, 0
    budget = min(settings.max_new_tokens, min(settings.max_length, limit) - len(prompt))
    while True:
        room = len(prompt) + budget - len(text)
        window = settings.refine_iter == "auto"
        if window or draft is None:
            draft, passes = (
                [*tail, *[placeholder] * settings.add_eos_length][: min(settings.add_eos_length, room - 1)],
                0,
            )
        passes += 1
        logits = model(torch.tensor([text + draft])).logits[0, len(text) - 1 :]
        positions = range(len(text), len(text) + len(draft) + 1)
        chosen = choose(logits, positions, settings, WholeHead()).tolist()
        count = next((at for at, (a, b) in enumerate(zip(draft, chosen)) if a != b), len(draft)) + 1
        if window or passes == settings.refine_iter:
            shares = logits.softmax(dim=-1)
            while count < len(chosen) and shares[count, chosen[count]] >= settings.accept:
                count += 1
            ended = True
        else:
            ended = count == len(chosen)
        for token in chosen[:count]:
            text.append(token)
            if token in stop_ids or len(text) == len(prompt) + budget:
                return tuple(text[len(prompt) :])
        tail = chosen[count:] if window else []
        draft = None if ended else chosen[count:-1]
