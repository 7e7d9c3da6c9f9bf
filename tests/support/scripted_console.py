"""A person who types what a script says, in the place of the terminal."""

from __future__ import annotations

import queue

from chat.console.events import Leave, Submitted


class ScriptedConsole:
    """Types what the script holds: a text sends a line, a pair (n, event) comes in the n-th pass of a reply.

    A function is called when its turn comes at the prompt; who waits no longer than some time then got nothing.
    """

    def __init__(self, *script):
        self.width, self.height = 300, 24
        self.script = list(script)
        self.shown = ""
        self.live_frames = 0
        self.status = []
        self.events = self
        self.passes = 0

    # The queue's side: `get` is the prompt, `get_nowait` is asked once per pass until it is empty.
    def get(self, timeout=None):
        self.passes = 0
        while self.script and callable(self.script[0]):
            self.script.pop(0)()
            if timeout is not None:
                raise queue.Empty
        return self._event(self.script.pop(0)) if self.script else Leave()

    def get_nowait(self):
        if self.script and isinstance(self.script[0], tuple) and self.passes >= self.script[0][0]:
            return self._event(self.script.pop(0)[1])
        self.passes += 1
        raise queue.Empty

    def _event(self, event):
        return Submitted(event) if isinstance(event, str) else event

    def commit(self, text):
        self.shown += text

    note = echo = commit

    def show_live(self, lines):
        self.live_frames += bool(lines)

    def clear_live(self):
        pass

    def set_status(self, text):
        self.status.append(text)

    def set_toolbar(self, text):
        self.toolbar = text

    def set_busy(self, busy):
        pass

    def set_stoppable(self, stoppable):
        pass

    def cut_live(self):
        self.cut = True

    def edit(self, text):
        self.draft = text

    def insert(self, text, label):
        self.inserted = (text, label)

    def put_back(self, text):
        self.given_back = text

    def send(self, code):
        self.copied = code
        return True
