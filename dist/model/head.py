"""The output head's rows of the vocabulary, on one rank or spread over all: the best token, or the whole logits.

Nothing here waits for the host or looks at a value, so that all of it can be captured in a CUDA graph.

Shape suffixes: N rows, V vocabulary, R ranks.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from dist.checkpoint.boxes import even_bounds
from dist.protocol import Group

NOT_A_NUMBER = -1
# Whole numbers up to here are exact in float32, in which ids travel.
MOST_EXACT = 1 << 24


def highest(scores_NV: torch.Tensor) -> torch.Tensor:
    """The id of each row's highest score, int64 [N]; the lowest of equals, NOT_A_NUMBER for a row with a NaN."""
    chosen_N = scores_NV.argmax(dim=-1)
    # argmax prefers NaN to any number, so a look at the winner is enough.
    winner_N = scores_NV.gather(-1, chosen_N.unsqueeze(-1)).squeeze(-1)
    return torch.where(winner_N.isnan(), NOT_A_NUMBER, chosen_N)


class Head(Protocol):
    """What stands in the last dimension of this rank's logits: the tokens from `first_token` on.

    `kernels`, the same on all ranks: our kernels run on their GPUs (`fuse.fuse`).
    """

    kernels: bool

    @property
    def first_token(self) -> int: ...

    def greedy(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """The token with the highest logit in each row, int64 [N], the same on every rank.

        Ties go to the lowest id. A row that holds a NaN gives NOT_A_NUMBER.
        """
        ...

    def whole(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [..., V] of the whole vocabulary, on every rank, from this rank's [..., its tokens]."""
        ...


class WholeHead:
    """Every rank computes the logits of all tokens."""

    first_token = 0
    kernels = False

    def greedy(self, logits_NV: torch.Tensor) -> torch.Tensor:
        if self.kernels:
            from dist.kernels.best_token import best_tokens

            return best_tokens(logits_NV, not_a_number=NOT_A_NUMBER)
        return highest(logits_NV)

    def whole(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class VocabularyHead:
    """Every rank computes the logits of its share of the tokens (`even_bounds`); both methods are collective."""

    kernels = False

    def __init__(self, group: Group, vocabulary: int) -> None:
        bounds = even_bounds(vocabulary, group.size)
        self.first_token = bounds[group.rank]
        self.tokens = bounds[group.rank + 1] - bounds[group.rank]
        self.vocabulary = vocabulary
        self._most_tokens = bounds[1]
        self._group = group

    def greedy(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """One small message a rank: the logit and the id of its best tokens."""
        if self.kernels and self.vocabulary <= MOST_EXACT:
            return self._by_kernels(logits_NV)
        scores_NV = self._padded(logits_NV) if self.tokens == 0 else logits_NV
        id_N = scores_NV.argmax(dim=-1)
        score_N = scores_NV.gather(-1, id_N.unsqueeze(-1)).squeeze(-1).float()
        # The logit's bits as an integer, so that both travel in one exact message.
        mine_N2 = torch.stack([score_N.view(torch.int32), (id_N + self.first_token).int()], dim=-1)
        all_RN2 = self._group.gather(mine_N2)
        score_RN = all_RN2[..., 0].contiguous().view(torch.float32)
        # Shares lie in the order of the ids, and argmax takes the first of equals and NaN before any number.
        rank_1N = score_RN.argmax(dim=0, keepdim=True)
        chosen_N = all_RN2[..., 1].gather(0, rank_1N).squeeze(0).long()
        return torch.where(score_RN.gather(0, rank_1N).squeeze(0).isnan(), NOT_A_NUMBER, chosen_N)

    def _by_kernels(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """By a sum, which needs no library call that a CUDA graph would have to hold."""
        from dist.kernels.best_token import best_tokens

        return best_tokens(
            logits_NV,
            not_a_number=NOT_A_NUMBER,
            first_token=self.first_token,
            rank=self._group.rank,
            ranks=self._group.size,
            most_tokens=self._most_tokens,
            add=self._group.sum_in_place,
        )

    def whole(self, logits: torch.Tensor) -> torch.Tensor:
        """One all-gather of the padded shares; only the last ones are ever padded."""
        all_R = self._group.gather(self._padded(logits).contiguous())
        return all_R.movedim(0, -2).flatten(-2)[..., : self.vocabulary]

    def _padded(self, logits: torch.Tensor) -> torch.Tensor:
        return F.pad(logits, (0, self._most_tokens - logits.shape[-1]), value=-torch.inf)
