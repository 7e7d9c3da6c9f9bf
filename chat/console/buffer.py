"""The text of the input line, edited by what is seen as one character. Knows no keys."""

from __future__ import annotations

from prompt_toolkit.buffer import Buffer

from chat.text.graphemes import is_boundary, next_boundary, previous_boundary


class VisibleCharacters(Buffer):
    """A buffer that never leaves its cursor within an accented letter, a flag or a family, nor takes one apart.

    Counts of lines and entries below one, which a negative argument gives, count as one.
    """

    @property
    def cursor_position(self) -> int:
        return super().cursor_position

    @cursor_position.setter
    def cursor_position(self, value: int) -> None:
        if not is_boundary(self.text, value):
            beyond = value > self.cursor_position
            value = next_boundary(self.text, value - 1) if beyond else previous_boundary(self.text, value + 1)
        Buffer.cursor_position.fset(self, value)  # type: ignore[attr-defined]

    def delete_before_cursor(self, count: int = 1) -> str:
        begin = max(0, self.cursor_position - count)
        if not is_boundary(self.text, begin):
            begin = previous_boundary(self.text, begin + 1)
        return super().delete_before_cursor(self.cursor_position - begin) if begin < self.cursor_position else ""

    def delete(self, count: int = 1) -> str:
        end = min(len(self.text), self.cursor_position + max(0, count))
        if not is_boundary(self.text, end):
            end = next_boundary(self.text, end - 1)
        return super().delete(end - self.cursor_position) if end > self.cursor_position else ""

    def cursor_up(self, count: int = 1) -> None:
        super().cursor_up(max(1, count))

    def cursor_down(self, count: int = 1) -> None:
        super().cursor_down(max(1, count))

    def history_backward(self, count: int = 1) -> None:
        super().history_backward(max(1, count))

    def history_forward(self, count: int = 1) -> None:
        super().history_forward(max(1, count))
