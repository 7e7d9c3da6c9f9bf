"""Values that cross ranks or packages. Knows no model, no text and no process group.

Orders go from rank 0 to its followers; events come out of the engine on rank 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dist.settings import GenerationSettings

if TYPE_CHECKING:
    import torch

# How ranks sum (`Group.open_sums`) where the GPUs cannot do it through memory that they share.
SUMS_BY_NCCL = "sums by NCCL"

FinishReason = Literal["stop", "length", "cancelled"]


# Orders: all that followers ever receive.


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Answer these prompts. `placeholder` fills a fresh block; a reply ends at any of `stop_ids`.

    `row_settings` are the prompts' own, one each, which later settings don't change; None: all are answered under
    `settings`, and from a block's end on under what the user has changed. Where there is sampling, a seed is set:
    ranks must not draw their own. The decoder is that of `settings`.
    `changes` and `earlier` have one entry a prompt or none: recorded changes as (reply length, settings in force
    from there on), and an earlier reply to draw drafts from, which changes no token.
    With `logprobs` each reply carries the log-probabilities of its tokens, and so many of the likeliest.
    Each reply begins with its tokens in `begun`, which count as the reply's own: one entry a prompt, or none.
    So many replies as `together` says are made at once, where memory allows it, by default all of them; the next
    prompt's begins when one ends.
    """

    prompts: tuple[tuple[int, ...], ...]
    settings: GenerationSettings
    placeholder: int
    stop_ids: tuple[int, ...]
    trace: bool = False
    row_settings: tuple[GenerationSettings, ...] | None = None
    changes: tuple[tuple[tuple[int, GenerationSettings], ...], ...] = ()
    earlier: tuple[tuple[int, ...], ...] = ()
    begun: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    together: int | None = None

    def __post_init__(self) -> None:
        if self.row_settings is not None and len(self.row_settings) != len(self.prompts):
            raise ValueError(f"{len(self.row_settings)} settings for {len(self.prompts)} prompts")

    def begun_of(self, row: int) -> tuple[int, ...]:
        """What the reply to prompt `row` begins with."""
        return self.begun[row] if self.begun else ()

    def settings_of(self, row: int, common: GenerationSettings | None = None) -> GenerationSettings:
        """What prompt `row` is answered under: its own settings, or those in `common` force."""
        if self.row_settings is not None:
            return self.row_settings[row]
        return common or self.settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Replace the weights by those of another checkpoint folder, whose digest on rank 0 is `digest`.

    `whole` is that of its every byte, "" if rank 0 has not read them all.
    """

    path: str
    digest: str
    whole: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Leave the receive loop."""


Order = Turn | Load | Shutdown


# What rank 0 wants while a turn runs.


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What rank 0's user wants, asked once per iteration: stop now, and the settings of the next block."""

    settings: GenerationSettings
    cancel: bool = False


# The likeliest tokens of a place, with their probabilities.
Candidates = tuple[tuple[int, float], ...]
# A token's log-probability, and the likeliest tokens in its place with theirs.
TokenScore = tuple[float, Candidates]

# Finds stop texts, on the rank that leads. Given a reply's tokens, how many of them a pass adds, and the texts:
# after how many of these one of the texts is complete, or None.
EndsAt = Callable[[Sequence[int], int, tuple[str, ...]], "int | None"]


# Events: what the engine yields on rank 0.


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillUpdate:
    """`done` of `total` prompt tokens have been read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockUpdate:
    """The state of one block or window after one iteration.

    row        which prompt of the turn (0 in a conversation)
    index      number of the block in the reply, from 0; None: a window, which slides
    iteration  passes made so far over this block, or by this window, from 1
    token_ids  the draft; when `finish` is set, cut after the first stop token or at the budget
    changed    for each of token_ids: does it differ from what stood there before this iteration
    exact      how many leading tokens are those of greedy decoding after what stands before them
    settled    how many of them joined the reply with this pass: all of a finished block's, none of an unfinished
               one's, what is exact of a window's; the next update begins behind them
    finish     why the whole reply ended, or None
    candidates with `Turn.trace`: for each of token_ids its most likely (token id, probability) pairs; none where
               the token was exact before this iteration, which did not choose it again
    """

    row: int = 0
    index: int | None
    iteration: int
    token_ids: tuple[int, ...]
    changed: tuple[bool, ...]
    exact: int
    settled: int
    finish: FinishReason | None = None
    candidates: tuple[Candidates, ...] | None = None

    @property
    def settled_ids(self) -> tuple[int, ...]:
        """The tokens that joined the reply."""
        return self.token_ids[: self.settled]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyStats:
    """Figures of one reply. Times in seconds; `ttft_s` runs from the order to the reply's first tokens.

    `forwards` counts passes of the model except the `prefill_forwards` (all of the prefill's chunks but its
    last, which is the first pass). `iterations` and `converged` have one entry per block; `accepted` has one per
    pass of a window: how many tokens it gave the reply. `drafts` counts the right ones by source of the draft.
    """

    forwards: int
    prefill_forwards: int
    iterations: tuple[int, ...] = ()
    converged: tuple[bool, ...] = ()
    accepted: tuple[int, ...] = ()
    drafts: Mapping[str, int] = field(default_factory=dict)
    ttft_s: float
    decode_s: float
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.forwards if self.forwards else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values by the names of the results file: of blocks, or of a window's passes, or of both."""
        blocks = {"iterations": list(self.iterations), "converged": list(self.converged)}
        return {
            "forwards": self.forwards,
            "prefill_forwards": self.prefill_forwards,
            **({"accepted": list(self.accepted), "drafts": dict(self.drafts)} if self.accepted else {}),
            **(blocks if self.iterations or not self.accepted else {}),
            "ttft_s": round(self.ttft_s, 4),
            "decode_s": round(self.decode_s, 4),
            "tokens_per_s": round(self.tokens_per_s, 2),
            "tokens_per_forward": round(self.tokens_per_forward, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One finished reply. `token_ids` runs up to and including the stop token, if there is one.

    A cancelled reply holds its finished blocks only, or all that a window made exact. `settings` are its last ones.
    `logprobs`, where the turn asked for them and the model is causal, has an entry for each token.
    """

    row: int = 0
    prompt_len: int
    token_ids: tuple[int, ...]
    finish: FinishReason
    settings: GenerationSettings
    stats: ReplyStats
    logprobs: tuple[TokenScore, ...] | None = None


Event = PrefillUpdate | BlockUpdate | Reply


class Group(Protocol):
    """The ranks of one run, as the rest of the program sees them.

    `group.TorchGroup` is the real one, `group.SoloGroup` its twin for a single process.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def close(self) -> None:
        """Leave the run; the last thing a rank does with its group."""
        ...

    def publish(self, order: Order) -> None:
        """Rank 0: hand an order to every follower waiting in `receive`."""

    def receive(self) -> Order:
        """Followers: wait, for years if need be, for the next order."""
        ...

    def agree(self, verdict: torch.Tensor) -> torch.Tensor:
        """Rank 0's int64 CPU tensor, on every rank (same shape everywhere)."""
        ...

    def gather_errors(self, error: str | None) -> dict[int, str]:
        """Every rank says what went wrong with it, or None; all get {rank: error} of those that failed."""
        ...

    def smallest(self, value: int) -> int:
        """The least of the numbers that the ranks pass in."""
        ...

    def connect(self) -> None:
        """Once, all ranks: begin what their first exchange would wait for; returns at once."""
        ...

    def spread_rows(self, tensor: torch.Tensor, bounds: Sequence[int]) -> None:
        """In place: rank r brings rows bounds[r] to bounds[r + 1] of `tensor`; afterwards all hold all."""

    def open_sums(self) -> str | None:
        """All ranks, before anything is captured: speed up small sums where that works.

        Returns how ranks now sum, in words, or None where there is but one way.
        """
        ...

    def sum_in_place(self, tensor: torch.Tensor, added: torch.Tensor | None = None) -> None:
        """In place: the sum of what the ranks bring, contiguous and of one shape; then `added`, the same on all.

        The host does not wait.
        """

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """[size, ...]: what every rank brings, contiguous and of one shape. The host does not wait."""
        ...

    def open_counter(self) -> Callable[[int], int]:
        """A number that all ranks add to: `add(count)` gives the sum so far. Ranks open them in the same order."""
        ...
