"""A session's replies decoded again, for `/replay` and `--replay`. The conversation stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chat.conversation.divergence import Margins
from chat.conversation.page import Page
from chat.conversation.provenance import is_other, named, promise
from chat.conversation.state import Talk
from chat.conversation.visiting import Guest, Visit
from chat.conversation.work import Work
from chat.sessions.records import CheckpointRecord
from chat.sessions.replay import Decoded, Summary, replay
from chat.sessions.tree import Tree
from chat.text.tokenizer import ChatTokenizer
from dist.decode.engine import Engine
from dist.errors import ChatError, RankError, UsageError, WeightsLost
from dist.protocol import BlockUpdate, Control, Reply, Turn

Decode = Callable[[Turn, str], "Decoded | None"]


class Weights:
    """The weights that decode replies again: those loaded now or, given `go`, for each reply those that made it."""

    def __init__(self, decode: Decode, now: Guest, go: Callable[[Path], Guest] | None) -> None:
        self.decode = decode
        self.now = now
        self._go = go
        self._problems: dict[tuple[str, str], str] = {}

    @property
    def own(self) -> bool:
        """Whether each reply is decoded by what made it."""
        return self._go is not None

    @property
    def tokenizer(self) -> ChatTokenizer:
        return self.now.tokenizer

    @property
    def use_template(self) -> bool:
        return self.now.use_template

    def turn_to(self, maker: CheckpointRecord | None) -> str:
        """Load what made a reply, if asked to and not loaded yet; returns why that failed, or ""."""
        if self._go is None or maker is None or not is_other(maker, self.now.record):
            return ""
        which = (maker.path, maker.digest)
        if which not in self._problems:
            try:
                self.now = self._go(Path(maker.path))
            except (RankError, WeightsLost):
                raise
            except ChatError as error:
                self._problems[which] = f"{named(maker)} cannot be loaded: {error.what} {error.why}".rstrip()
            else:
                if is_other(maker, self.now.record):
                    self._problems[which] = f"{named(maker)} holds different weights now."
        return self._problems.get(which, "")


class Replaying:
    """Decodes replies again and says of each whether it came out the same."""

    def __init__(self, talk: Talk, work: Work, page: Page) -> None:
        self._talk = talk
        self._work = work
        self._page = page

    def replay(self, *, own: bool) -> None:
        """All replies of the session, on all branches; Ctrl-C stops. Raises ChatError before the first one.

        `own`: each by the checkpoint that made it, the present one is back afterwards; else all by that.
        """
        talk = self._talk
        makers = [node.made.checkpoint for node in talk.tree.nodes() if node.made]
        if not makers:
            raise UsageError("There is no reply to replay yet.")
        here = Guest(tokenizer=talk.tokenizer, use_template=talk.use_template, record=talk.checkpoint_record())
        if not own or not any(one is not None and is_other(one, here.record) for one in makers):
            self._replay(Weights(self._decode, here, None), own=own)
            return
        with Visit(talk, self._page) as visit:
            go = partial(visit.go_to, doing="replaying: ")
            self._replay(Weights(self._decode, here, go), own=own)

    def _replay(self, weights: Weights, *, own: bool) -> None:
        summary = Summary()
        self._work.begin()
        try:
            for outcome in replay(self._talk.tree, weights):
                summary.add(outcome)
                self._page.note(str(outcome))
        finally:
            self._work.rest()
        stopped = "Stopped. " if self._work.to_stop else ""
        promised = promise(self._talk.tree, weights.now.record, own=own)
        self._page.note(f"{stopped}{summary} {promised}".rstrip())

    def _decode(self, turn: Turn, doing: str) -> Decoded | None:
        if self._work.heard_stop():
            return None
        view, margins = self._page.reply_view(self._talk.reply_text), Margins()

        def show(update: BlockUpdate) -> None:
            margins.take(update)
            self._page.console.show_live(view.update(update).draw)

        turn = dataclasses.replace(turn, trace=self._talk.rounds)
        reply = self._work.reply(turn, lambda: turn.settings, show, doing)
        return None if reply.finish == "cancelled" else Decoded(reply=reply, margin=margins.at)


def replay_all(tree: Tree, weights: Weights, *, say: Callable[[str], object]) -> bool:
    """Every reply of a session without a conversation, for `--replay`; whether all came out the same.

    `say` is handed a line for each reply and a summary.
    """
    summary = Summary()
    for outcome in replay(tree, weights):
        summary.add(outcome)
        say(str(outcome))
    say(f"{summary} {promise(tree, weights.now.record, own=weights.own)}".rstrip())
    return not summary.differ and not summary.skipped


def decoder(engine: Engine, *, rounds: bool, interrupted: Callable[[], bool]) -> Decode:
    """Decodes turns without a conversation. `rounds`: whether the model computes in 16 bits."""

    def decode(turn: Turn, doing: str) -> Decoded | None:
        margins = Margins()
        turn = dataclasses.replace(turn, trace=rounds)
        for event in engine.answer(turn, lambda: Control(settings=turn.settings, cancel=interrupted())):
            if isinstance(event, BlockUpdate):
                margins.take(event)
            elif isinstance(event, Reply):
                return None if event.finish == "cancelled" else Decoded(reply=event, margin=margins.at)
        raise AssertionError("the engine ended a turn without a reply")

    return decode
