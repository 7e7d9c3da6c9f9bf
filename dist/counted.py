"""A number of things, in words."""

from __future__ import annotations


def counted(n: int, what: str, several: str = "") -> str:
    """`1 token`, `2 tokens`, `1,000 replies`; `several` where the plural is not just an s more."""
    return f"{n:,} {what if n == 1 else several or what + 's'}"
