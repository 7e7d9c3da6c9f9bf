"""`/watch`: a conversation that says when its run has a newer step, and goes on with it. Draws nothing itself."""

from __future__ import annotations

from chat.conversation.answering import Answering
from chat.conversation.page import Page
from chat.conversation.state import Talk
from chat.loading.watching import RunWatch
from dist.errors import UsageError


class Watching:
    """Watches the run of the loaded checkpoint while that is switched on."""

    def __init__(self, talk: Talk, answering: Answering, page: Page) -> None:
        self._talk = talk
        self._answering = answering
        self._page = page
        self._watch: RunWatch | None = None
        self._announced: int | None = None

    @property
    def newer(self) -> int | None:
        """The newest complete step after the one that answers, as far as is known."""
        newest = self._watch.newest if self._watch is not None else None
        return newest if newest is not None and newest > (self._talk.facts.step or -1) else None

    def on(self) -> None:
        """Watch from now on. Raises UsageError if the checkpoint does not belong to a run."""
        if self._watch is None or self._watch.is_over:
            self.off()
            self._watch = self._talk.checkpoints.watch(lambda: self._talk.facts.step, self._tell)
            self._watch.start()
        self._page.note(
            f"Watching {self._watch.run}: the toolbar says when a newer step is complete. /watch off stops it."
        )

    def off(self) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._watch.stop()
        self._watch, self._announced = None, None
        self._talk.show_newer(None)

    def load(self) -> None:
        """Go on with the newer step and answer the last message again by it. Raises ChatError, or WeightsLost."""
        newer = self.newer
        if self._watch is None or self._watch.is_over:
            raise UsageError("No run is being watched.", "", "/watch starts it; /load STEP loads a step at once.")
        if newer is None:
            step = self._talk.facts.step
            raise UsageError(f"There is no complete step after {step} in {self._watch.run} yet.")
        self._talk.load(str(newer))
        self._talk.show_newer(None)
        if self._talk.tree.questions():
            self._answering.say_again()

    def _tell(self, newest: int | None) -> None:
        """Called on the watch's thread."""
        if self._watch is None:  # it was ended in the middle of a look
            return
        self._talk.show_newer(newest)
        if newest is not None and newest != self._announced and not self._page.redraws:
            self._page.note(f"Step {newest} is complete. /watch load goes on with it.")
        self._announced = newest
