"""A reply cut into what the model thought and what it answers, by the tags of thinking models. Knows no tokens.

Thinking stands first in a reply. The chat template may have opened the tag, so a reply can begin inside.
"""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class ThinkingText:
    """Takes a reply's text as it comes. `thought` is what stood between the tags so far.

    `inside`: it is still being thought. `over`: no thinking can come any more.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self.inside = inside
        self.over = False
        self.thought = ""
        self._held = ""  # what may be the beginning of a tag
        self._gap = False  # the closing tag was the last that came

    def feed(self, text: str, *, final: bool = False) -> str:
        """Take more of the reply; what of it is answer. With `final` nothing more comes."""
        self._held += text
        if not self.inside and not self.over:
            self._begin(final=final)
        if self.inside:
            self._think(final=final)
        if not self.over:
            return ""
        answer, self._held = self._held, ""
        if self._gap:  # the tag stands on a line of its own
            answer = answer.lstrip("\n")
            self._gap = not answer
        return answer

    def _begin(self, *, final: bool) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self.inside, self._held = True, begun[len(OPEN) :]
        elif final or not OPEN.startswith(begun):
            self.over = True

    def _think(self, *, final: bool) -> None:
        thought, close, rest = self._held.partition(CLOSE)
        if close:
            self.thought += thought
            self.inside, self.over, self._held = False, True, rest
            self._gap = True
            return
        kept = (
            0
            if final
            else max((size for size in range(len(CLOSE)) if self._held.endswith(CLOSE[:size])), default=0)
        )
        cut = len(self._held) - kept
        self.thought, self._held = self.thought + self._held[:cut], self._held[cut:]


def split_thinking(text: str) -> tuple[str, str]:
    """What was thought and what was answered in a whole reply."""
    both = ThinkingText(inside=CLOSE in text and OPEN not in text.partition(CLOSE)[0])
    answer = both.feed(text, final=True)
    return both.thought, answer


def opens_thinking(prompt: str) -> bool:
    """Whether a reply to this prompt begins inside the tags."""
    return prompt.rstrip().endswith(OPEN)
