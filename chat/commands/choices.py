"""Settings of the conversation and its screen, which the model never sees: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chat.conversation.repl import Repl


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A setting that the model never sees: one of some words, the default first, each with what it does.

    `holder` gives what has the present value as an attribute called `name`.
    """

    name: str
    help: str
    values: Mapping[str, str]
    holder: Callable[[Repl], object]

    @property
    def default(self) -> str:
        return next(iter(self.values))

    def present(self, repl: Repl) -> str:
        return str(getattr(self.holder(repl), self.name))


CHOICES: dict[str, Choice] = {
    row.name: row
    for row in (
        Choice(
            name="overflow",
            help="what happens to a conversation that no longer fits",
            values={
                "drop": "What no longer fits is left out of the prompt, the oldest exchanges first.",
                "refuse": "A message that no longer fits together with the conversation is refused.",
            },
            holder=lambda repl: repl.talk,
        ),
        Choice(
            name="markdown",
            help="how replies are shown",
            values={
                "rendered": "Markdown is drawn: headings, lists, tables, code.",
                "source": "Replies are shown exactly as the model wrote them.",
            },
            holder=lambda repl: repl.page.shown,
        ),
        Choice(
            name="thinking",
            help="what of a model's thinking stays on the screen",
            values={
                "hide": "Thinking is shown as it streams, then folded to a line.",
                "show": "Thinking stays on the screen, dimmed.",
            },
            holder=lambda repl: repl.page.shown,
        ),
        Choice(
            name="stats",
            help="the figures after each reply",
            values={
                "line": "One line of figures follows each reply.",
                "full": "All figures follow each reply, by name.",
                "off": "No figures follow a reply; /stats shows the last one's.",
            },
            holder=lambda repl: repl.page.shown,
        ),
        Choice(
            name="bell",
            help="how you are alerted when a reply or a load of more than 10 s ends",
            values={
                "bell": "The terminal's bell rings when something that took more than 10 s ends.",
                "notify": "The terminal is asked for a notification (OSC 9) when something that took long ends.",
                "off": "No bell and no notification.",
            },
            holder=lambda repl: repl.page.shown,
        ),
    )
}
