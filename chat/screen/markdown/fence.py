"""An open code block, as one view of a reply hands it to the other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fence:
    """`mark` is what opened it, `language` what stood behind that, `margin` the blanks in front of it."""

    mark: str
    language: str
    margin: int
