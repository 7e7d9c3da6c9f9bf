"""A pass of the model: what it reads and chooses, and the widths that passes have. Knows no rule and no tensor."""

from __future__ import annotations

from dataclasses import dataclass

from dist.settings import GenerationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward to make: read all of `token_ids`, choose a token after each of the last `wanted`."""

    token_ids: list[int]
    wanted: int
    settings: GenerationSettings

    @property
    def positions(self) -> range:
        """Logical positions of the tokens to choose."""
        return range(len(self.token_ids) - self.wanted + 1, len(self.token_ids) + 1)


def pass_sizes(settings: GenerationSettings) -> tuple[tuple[int, int], ...]:
    """How many tokens passes read and choose at most, once the text before them is read; the smaller first.

    A window's passes have one size. What joined the text without being exact is read again, by the first pass over
    the next block, and with `accept` by a window's.
    """
    n = settings.add_eos_length
    longer = (2 * n + 1, n + 1)
    if settings.refine_iter == "auto":
        return ((n + 1, n + 1), longer)[: 1 if settings.accept is None else 2]
    return ((max(n, 1), max(n, 1)), longer)
