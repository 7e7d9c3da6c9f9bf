"""A session's replies decoded again, for `/replay` and `--replay`. The conversation stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from chat.conversation.divergence import Margins
from chat.conversation.page import Page
from chat.conversation.provenance import promise
from chat.conversation.state import Talk
from chat.conversation.work import Work
from chat.sessions.records import CheckpointRecord
from chat.sessions.replay import Decoded, Summary, cases, replay
from chat.sessions.tree import Tree
from chat.text.tokenizer import ChatTokenizer
from dist.decode.engine import Engine
from dist.errors import UsageError
from dist.protocol import BlockUpdate, Control, Reply, Turn


class Replaying:
    """Decodes replies again and says of each whether it came out the same."""

    def __init__(self, talk: Talk, work: Work, page: Page) -> None:
        self._talk = talk
        self._work = work
        self._page = page

    def replay(self) -> None:
        """All replies of the session, on all branches; Ctrl-C stops. Raises UsageError if there is none."""
        talk, summary = self._talk, Summary()
        if not any(node.made for node in talk.tree.nodes()):
            raise UsageError("There is no reply to replay yet.")
        found = list(cases(talk.tree, talk.tokenizer, use_template=talk.use_template))
        try:
            for outcome in replay(iter(found), self._decode, talk.tokenizer):
                summary.add(outcome)
                self._page.note(str(outcome))
        finally:
            self._work.rest()
        stopped = "Stopped. " if self._work.to_stop else ""
        self._page.note(f"{stopped}{summary} {promise(talk.tree, talk.checkpoint_record())}".rstrip())

    def _decode(self, turn: Turn, doing: str) -> Decoded | None:
        view, margins = self._page.reply_view(self._talk.reply_text), Margins()

        def show(update: BlockUpdate) -> None:
            margins.take(update)
            self._page.console.show_live(view.update(update).draw)

        turn = dataclasses.replace(turn, trace=self._talk.rounds)
        reply = self._work.reply(turn, lambda: turn.settings, show, doing)
        return None if reply.finish == "cancelled" else Decoded(reply=reply, margin=margins.at)


def replay_all(
    engine: Engine,
    tree: Tree,
    tokenizer: ChatTokenizer,
    now: CheckpointRecord,
    *,
    use_template: bool,
    say: Callable[[str], object],
    interrupted: Callable[[], bool],
) -> bool:
    """Every reply of a session without a conversation, for `--replay`; whether all came out the same.

    `now` is what answers, `say` is handed a line for each reply and a summary.
    """

    def decode(turn: Turn, doing: str) -> Decoded | None:
        margins = Margins()
        turn = dataclasses.replace(turn, trace=now.dtype != "float32")
        for event in engine.answer(turn, lambda: Control(settings=turn.settings, cancel=interrupted())):
            if isinstance(event, BlockUpdate):
                margins.take(event)
            elif isinstance(event, Reply):
                return None if event.finish == "cancelled" else Decoded(reply=event, margin=margins.at)
        raise AssertionError("the engine ended a turn without a reply")

    summary = Summary()
    for outcome in replay(cases(tree, tokenizer, use_template=use_template), decode, tokenizer):
        summary.add(outcome)
        say(str(outcome))
    say(f"{summary} {promise(tree, now)}".rstrip())
    return not summary.differ and not summary.skipped
