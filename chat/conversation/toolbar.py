"""The line below the input: session, context, settings, step. Shown from any thread; knows no console."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from chat.sessions.session import Session
from dist.settings import GenerationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """How many tokens of the context a conversation takes that ends at `head`, a node of the session's tree."""

    tokens: int
    limit: int
    head: int


class Toolbar:
    """What it shows besides session and settings: `used` of the context, and a `newer` step of the run."""

    def __init__(self, draw: Callable[[str], None]) -> None:
        self.newer: int | None = None
        self.used: Used | None = None
        self._draw = draw
        self._drawing = threading.Lock()

    def forget_used(self, head: int) -> bool:
        """The conversation ends at `head` now; whether the tokens used are not known any more."""
        if self.used is None or self.used.head == head:
            return False
        self.used = None
        return True

    def show(self, session: Session, now: Callable[[], tuple[GenerationSettings, int | None]]) -> None:
        """Draw it; `now` gives the settings and the step that answers. The last call shows what holds then."""
        with self._drawing:
            settings, step = now()
            sampling = f"temperature {settings.temperature:g}" if settings.samples else "greedy"
            answers = "" if step is None else f"  step {step}"
            if self.newer is not None and self.newer > (step or -1):
                answers += f", new: {self.newer} (/watch load)"
            saved = "not saved  " if session.fault else ""
            used = f"{self.used.tokens:,} of {self.used.limit:,} tokens  " if self.used else ""
            rule = f"N {settings.add_eos_length}  R {settings.refine_iter}  {sampling}{answers}"
            self._draw(f"{session.name}  {used}{saved}{rule}")
