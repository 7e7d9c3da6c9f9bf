"""Files as nobody should write them: values of a wrong kind, lines lost, doubled or out of order, bytes changed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

WEIRD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**63, 10**30, 1e308, float("nan"), float("inf"), -0.0),
    *("", "x", "\ud800", "\x1b[31m", "\0", "9" * 5000, "../../x"),
    *([], [1], [[]], ["x"] * 3, {}, {"a": 1}, {"kind": "turn"}),
]
DEEP = [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000]


class Hostile:
    """What a seed makes of sound files."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, sound: Any) -> Any:
        """`sound` with something in it that does not belong there."""
        draw = self.random
        if isinstance(sound, dict) and sound and draw.random() > 0.15:
            changed = dict(sound)
            name = draw.choice(list(changed))
            if draw.random() < 0.2:
                del changed[name]
            else:
                changed[name] = self.value(changed[name])
            return changed
        if isinstance(sound, list) and sound and draw.random() > 0.15:
            at = draw.randrange(len(sound))
            return [self.value(one) if place == at else one for place, one in enumerate(sound)]
        return draw.choice(WEIRD)

    def bytes(self, sound: bytes) -> bytes:
        """`sound` with some places cut out, changed or filled."""
        draw, data = self.random, bytearray(sound)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(data) + 1)
            match draw.choice(["cut", "insert", "deep", "flip", "flip"]):
                case "cut":
                    del data[at : at + draw.randint(1, 60)]
                case "insert":
                    data[at:at] = draw.randbytes(draw.randint(1, 20))
                case "deep":
                    data[at:at] = draw.choice(DEEP)
                case "flip" if at < len(data):
                    data[at] ^= 1 << draw.randrange(8)
        return bytes(data)

    def lines(self, sound: Sequence[Any]) -> bytes:
        """JSON Lines of values, some of them changed, lost or there twice; or their bytes changed."""
        draw, kept = self.random, []
        for value in sound:
            kept += [self.value(value) if draw.random() < 0.25 else value] * draw.choice([1] * 8 + [0, 2])
        if draw.random() < 0.1:
            draw.shuffle(kept)
        data = b"".join(json.dumps(value).encode() + b"\n" for value in kept)
        return self.bytes(data) if draw.random() < 0.4 else data
