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

from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import takewhile

from dist.decode.drafts import OWN, Drafts
from dist.decode.passes import Pass
from dist.protocol import BlockUpdate, Candidates, FinishReason
from dist.settings import GenerationSettings

# What stands in a place that was never drafted: no choice equals it.
NOTHING = -1


@dataclass(slots=True, eq=False)
class Refinement:
    """One reply in the making. Ask `next_pass`, feed the model, hand its choices to `accept`; until `finish`.

    `limit` is the most tokens that prompt and reply may have together (the model's own limit). `drafts` fills the
    window; drafted ids from `vocabulary` on are not read. `changes` are (reply length, settings), which come into
    force there in place of those handed to `accept`. `begun` is what the reply begins with, as if it had been made.
    `causal` False drops all that follows from causality: every choice is made again in every pass, only an
    unchanged whole block ends early, blocks are refined whole and cut afterwards, and there is no window.
    """

    prompt: Sequence[int]
    settings: GenerationSettings
    _: KW_ONLY
    placeholder: int
    stop_ids: Collection[int]
    limit: int
    causal: bool = True
    row: int = 0
    drafts: Drafts = field(default_factory=lambda: Drafts({}))
    vocabulary: int = 1 << 62
    changes: Sequence[tuple[int, GenerationSettings]] = ()
    begun: Sequence[int] = ()
    finish: FinishReason | None = field(default=None, init=False)
    # The prompt and all that was taken; where the block or window begins in it, and its draft behind the text.
    _text: list[int] = field(init=False)
    _start: int = field(init=False)
    _draft: list[int] = field(default_factory=list, init=False)
    _window: bool = field(default=False, init=False)
    _block: int = field(default=0, init=False)
    _iteration: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.prompt or len(self.prompt) >= min(self.settings.max_length, self.limit):
            raise ValueError(f"no room for a reply: prompt {len(self.prompt)}, limit {self.limit}")
        self._text = [*self.prompt, *self.begun]
        if self.begun and self.begun[-1] in self.stop_ids:
            self.finish = "stop"
        self._go_on(self.settings, [])

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The reply's tokens: of finished blocks, or all that a window took."""
        return tuple(self._text[len(self.prompt) : self._start])

    @property
    def within_block(self) -> bool:
        """Whether the next pass goes on with a block that was begun."""
        return not self._window and self._iteration > 0

    def next_pass(self) -> Pass:
        """The forward that makes the next iteration."""
        return Pass(token_ids=self._text + self._draft[:-1], wanted=len(self._draft), settings=self.settings)

    def reply_with(self, choices: Sequence[int], sure: Sequence[int] | None) -> tuple[list[int], int]:
        """The reply as it is with the model's choices for `next_pass`, and how many tokens it takes of them."""
        taken = self._taken(choices, sure)
        return [*self._text[len(self.prompt) :], *taken], len(taken)

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
        entry per choice, are only passed through. `end`: the reply ends after so many of the tokens that it takes.
        """
        before, known, index = self._draft, len(self._text) - self._start, self._block
        window, exact, last = self._window, self._exact(choices), self._is_last()
        # 1. What the text takes, and whether the reply ends there.
        taken = self._taken(choices, sure)[:end]
        self._text += taken
        self._iteration = iteration = self._iteration + 1
        if taken and (end is not None or taken[-1] in self.stop_ids):
            self.finish = "stop"
        elif taken and self._room() <= 0:
            self.finish = "length"
        rest = [] if self.finish or last else list(choices[len(taken) :])
        token_ids, done = (*self._text[self._start :], *rest), window or not rest
        # 2. The window slides; a block goes on, or the next one begins.
        if window:
            self.drafts.judge(min(exact - 1, len(taken)))
        if done:
            self._block += not window
            self._go_on(next_settings, rest)
        else:
            self._draft = rest
        changed = [*[False] * known, *(iteration == 1 or a != b for a, b in zip(before, choices))]
        return BlockUpdate(
            row=self.row,
            index=None if window else index,
            iteration=iteration,
            token_ids=token_ids,
            changed=tuple(changed[: len(token_ids)]),
            exact=known + min(len(taken), exact),
            settled=known + len(taken) if done else 0,
            finish=self.finish,
            candidates=None if candidates is None else (*[()] * known, *candidates)[: len(token_ids)],
        )

    def cancel(self) -> None:
        """End the reply with what is finished."""
        self.finish = self.finish or "cancelled"

    @property
    def _reply_len(self) -> int:
        return len(self._text) - len(self.prompt)

    def _room(self) -> int:
        """How many more tokens the reply may have."""
        of_all = min(self.settings.max_length, self.limit) - len(self._text)
        return min(self.settings.max_new_tokens - self._reply_len, of_all)

    def _matched(self, choices: Sequence[int]) -> int:
        """How many leading places held their choice already; the last was no input and can't confirm anything."""
        return next((i for i, (a, b) in enumerate(zip(self._draft[:-1], choices)) if a != b), len(choices) - 1)

    def _exact(self, choices: Sequence[int]) -> int:
        """How many leading choices are exact."""
        matched = self._matched(choices)
        return matched + 1 if self.causal or matched + 1 == len(choices) else 0

    def _is_last(self) -> bool:
        """Whether the next pass ends a block."""
        rounds = self.settings.refine_iter
        return not self._window and self._iteration + 1 >= (len(self._draft) if rounds == "auto" else rounds)

    def _taken(self, choices: Sequence[int], sure: Sequence[int] | None) -> list[int]:
        """What the text takes: what is exact; from a block's last pass all of it, or what the model is sure of.

        At most up to the first stop token and within the budget; a window also ends at a recorded change.
        """
        most, last = self._exact(choices), self._is_last()
        if sure is not None and (last or self._window):
            most = self._matched(choices) + 1
            most += len([*takewhile(bool, sure[most:])])
        elif last:
            most = len(choices)
        most = next((i + 1 for i, token in enumerate(choices[:most]) if token in self.stop_ids), most)
        if self._window:
            most = min([most, *(at - self._reply_len for at, _ in self.changes if at > self._reply_len)])
        return list(choices[: min(most, self._room())])

    def _go_on(self, settings: GenerationSettings, tail: list[int]) -> None:
        """What the next pass reads behind the text, which has just grown; `tail` is what a window chose there."""
        self._start = len(self._text)
        if self.finish is not None:
            return
        due = [later for at, later in self.changes if at <= self._reply_len]
        self.settings = (due or [self.settings])[-1] if self.changes else settings
        room, size = self._room(), self.settings.add_eos_length + 1
        if room <= 0:
            self.finish = "length"
            return
        # A cut block equals the first tokens of the whole one only where attention is causal.
        size = min(size, room if self.causal else self.limit - len(self._text))
        goes_on, self._window = self._window, self.causal and self.settings.refine_iter == "auto"
        drafted: Sequence[int] = ()
        if self._window and size > 1:
            # A model that is sure of what continues somebody else's guess says nothing of the text.
            own = self.settings.drafts == OWN or self.settings.accept is not None
            drafted = self.drafts.draft(self._text, tail if goes_on else [], size - 1, own=own)[: size - 1]
        self._draft = [*takewhile(lambda token: 0 <= token < self.vocabulary, drafted)]
        self._draft += [self.placeholder] * (size - 1 - len(self._draft)) + [NOTHING]
        if not (goes_on and self._window):
            self._iteration = 0
