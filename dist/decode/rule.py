"""One reply in the making, as a small state machine. Knows no model, tensor, rank, clock or screen.

The state is the text and a draft of the places behind it. A pass reads the text and the draft but for its last
place, and chooses a token for each of the places. With causal attention this is Jacobi decoding:

    If a pass chose the first m drafted tokens as they stood in its input, its first m + 1 choices are exact.

Exact choices join the text, the others are the next draft; a stop token in the text ends the reply. There are two
rules for how the draft goes on:

window  (`refine_iter auto`) N + 1 places that slide: after every pass the draft is filled up again.
block   (`refine_iter R`) N + 1 places that start as placeholders. After R passes the rest is taken as it stands;
        only then, or when all of it is exact, does the next block begin.

With the setting `accept`, a window's pass and a block's last one give the text what is exact and, behind that, what
the model is sure of; the window or the next block goes on behind these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from dist.decode.drafts import OWN, Drafts
from dist.protocol import BlockUpdate, FinishReason
from dist.settings import GenerationSettings

Candidates = tuple[tuple[int, float], ...]
# What stands in a place that was never drafted: no choice equals it.
NOTHING = -1


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


class Refinement:
    """One reply in the making. Ask `next_pass`, feed the model, hand its choices to `accept`; until `finish`.

    `limit` is the most tokens that prompt and reply may have together (the model's own limit). `drafts` fills the
    window; drafted ids from `vocabulary` on are not read. `changes` are (reply length, settings), which come into
    force there in place of those handed to `accept`. `begun` is what the reply begins with, as if it had been made.
    `causal` False drops all that follows from causality: every choice is made again in every pass, only an
    unchanged whole block ends early, blocks are refined whole and cut afterwards, and there is no window.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        settings: GenerationSettings,
        *,
        placeholder: int,
        stop_ids: Sequence[int],
        limit: int,
        causal: bool = True,
        row: int = 0,
        drafts: Drafts | None = None,
        vocabulary: int = 1 << 62,
        changes: Sequence[tuple[int, GenerationSettings]] = (),
        begun: Sequence[int] = (),
    ) -> None:
        if not prompt or len(prompt) >= min(settings.max_length, limit):
            raise ValueError(f"no room for a reply: prompt {len(prompt)}, limit {limit}")
        self.prompt_len = len(prompt)
        self.begun_len = len(begun)
        self.settings = settings
        self.finish: FinishReason | None = None
        self.iterations: list[int] = []
        self.converged: list[bool] = []
        self.accepted: list[int] = []
        self.drafts = drafts or Drafts({})
        self._text = [*prompt, *begun]
        self._placeholder = placeholder
        self._stop_ids = frozenset(stop_ids)
        self._limit = limit
        self._causal = causal
        self._row = row
        self._vocabulary = vocabulary
        self._changes = tuple(changes)
        self._candidates: list[Candidates] = []
        self._draft: list[int] = []
        self._iteration = 0
        self._window = False
        if begun and begun[-1] in self._stop_ids:
            self.finish = "stop"
        self._go_on(settings, [])

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The reply's tokens: of finished blocks, or all that a window made exact."""
        return tuple(self._text[self.prompt_len : self._start])

    def next_pass(self) -> Pass:
        """The forward that makes the next iteration."""
        return Pass(token_ids=self._text + self._draft[:-1], wanted=len(self._draft), settings=self.settings)

    def reply_with(self, choices: Sequence[int], sure: Sequence[int] | None) -> tuple[list[int], int]:
        """The reply as it is with the model's choices for `next_pass`, and how many tokens it takes of them."""
        kept = self._kept(choices, self._matched(choices), sure)
        return self._text[self.prompt_len :] + kept, len(kept)

    def accept(
        self,
        choices: Sequence[int],
        next_settings: GenerationSettings,
        *,
        sure: Sequence[int] | None = None,
        candidates: Sequence[Candidates] | None = None,
        end: int | None = None,
    ) -> BlockUpdate:
        """Take the model's choices for `next_pass`; `next_settings` count from the next block on, in a window now.

        `sure`, where the setting `accept` asks for it, says of each choice whether the model is. `candidates`, one
        entry per choice, are only passed through to the update. `end`: the reply ends after so many of the tokens
        that it takes.
        """
        before, start, known = self._draft, self._start, len(self._text) - self._start
        window, index = self._window, len(self.iterations)
        # 1. What the input had right, and what the text takes.
        matched = self._matched(choices)
        exact = self._exact(choices, matched)
        last = self._is_last()
        kept = self._kept(choices, matched, sure)[:end]
        self._iteration = iteration = self._iteration + 1
        self._text += kept
        # 2. A reply may end here.
        if kept and (end is not None or kept[-1] in self._stop_ids):
            self.finish = "stop"
        elif kept and self._room() <= 0:
            self.finish = "length"
        rest = [] if self.finish or last else list(choices[len(kept) :])
        done, settled = window or not rest, len(self._text) - start
        token_ids = (*self._text[start:], *rest)
        if candidates is not None:
            self._candidates = [*self._candidates[:known], *candidates]
        shown = tuple(self._candidates[: len(token_ids)]) if candidates is not None else None
        # 3. The window slides; a block goes on, or the next one begins.
        if window:
            self.accepted.append(len(kept))
            self.drafts.judge(min(matched, len(kept)))
        elif done:
            self.iterations.append(iteration)
            self.converged.append(len(kept) <= exact)
        if done:
            self._go_on(next_settings, rest)
        else:
            self._draft = rest
        changed = [*[False] * known, *(iteration == 1 or a != b for a, b in zip(before, choices))]
        return BlockUpdate(
            row=self._row,
            index=None if window else index,
            iteration=iteration,
            token_ids=token_ids,
            changed=tuple(changed[: len(token_ids)]),
            exact=known + min(len(kept), exact),
            settled=settled if done else 0,
            finish=self.finish,
            candidates=shown,
        )

    def cancel(self) -> None:
        """End the reply with what is finished."""
        if self.finish is None:
            self.finish = "cancelled"

    @property
    def _reply_len(self) -> int:
        return len(self._text) - self.prompt_len

    def _room(self) -> int:
        """How many more tokens the reply may have."""
        of_all = min(self.settings.max_length, self._limit) - len(self._text)
        return min(self.settings.max_new_tokens - self._reply_len, of_all)

    def _matched(self, choices: Sequence[int]) -> int:
        """How many leading places held their choice already; the last was no input and can't confirm anything."""
        return next((i for i, (a, b) in enumerate(zip(self._draft[:-1], choices)) if a != b), len(choices) - 1)

    def _exact(self, choices: Sequence[int], matched: int) -> int:
        return matched + 1 if self._causal or matched + 1 == len(choices) else 0

    def _kept(self, choices: Sequence[int], matched: int, sure: Sequence[int] | None) -> list[int]:
        """What the text takes: what is exact; from a block's last pass all of it, or what the model is sure of."""
        taken, last = self._exact(choices, matched), self._is_last()
        if sure is not None and (last or self._window):
            taken = matched + 1 + len([*takewhile(bool, sure[matched + 1 :])])
        elif last:
            taken = len(choices)
        return self._cut(choices[:taken])

    def _is_last(self) -> bool:
        """Whether the next pass ends a block."""
        rounds = self.settings.refine_iter
        return not self._window and self._iteration + 1 >= (len(self._draft) if rounds == "auto" else rounds)

    def _cut(self, tokens: Sequence[int]) -> list[int]:
        """The tokens up to the first stop token and within the budget; a window also ends at a recorded change."""
        most = next((i + 1 for i, token in enumerate(tokens) if token in self._stop_ids), len(tokens))
        if self._window:
            most = min([most, *(at - self._reply_len for at, _ in self._changes if at > self._reply_len)])
        return list(tokens[: min(most, self._room())])

    def _go_on(self, settings: GenerationSettings, tail: list[int]) -> None:
        """What the next pass reads behind the text, which has just grown; `tail` is what a window chose there."""
        self._start = len(self._text)
        if self.finish is not None:
            return
        due = [later for at, later in self._changes if at <= self._reply_len]
        self.settings = (due or [self.settings])[-1] if self._changes else settings
        room, size = self._room(), self.settings.add_eos_length + 1
        if room <= 0:
            self.finish = "length"
            return
        # A cut block equals the first tokens of the whole one only where attention is causal.
        size = min(size, room if self._causal else self._limit - len(self._text))
        goes_on, self._window = self._window, self._causal and self.settings.refine_iter == "auto"
        drafted: Sequence[int] = ()
        if self._window and size > 1:
            # A model that is sure of what continues somebody else's guess says nothing of the text.
            own = self.settings.drafts == OWN or self.settings.accept is not None
            drafted = self.drafts.draft(self._text, tail if goes_on else [], size - 1, own=own)[: size - 1]
        self._draft = [*takewhile(lambda token: 0 <= token < self._vocabulary, drafted)]
        self._draft += [self._placeholder] * (size - 1 - len(self._draft)) + [NOTHING]
        if not (goes_on and self._window):
            self._iteration = 0
