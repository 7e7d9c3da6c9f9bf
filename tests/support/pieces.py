"""A tokenizer of 61 tokens for the tiny models: short pieces of few letters, half characters, special tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tiny_models import VOCABULARY

from chat.text.tokenizer import ChatTokenizer

EOS, SPECIAL = 2, 5
SPECIALS = {"<|end|>": EOS, "<|turn|>": SPECIAL}
EURO = "€".encode()


class Backend:
    """Pieces of one to three letters of "abc" and blanks; some are parts of a euro sign."""

    is_fast = True  # several threads may use it

    def __init__(self) -> None:
        draw = random.Random(7)
        self.pieces = [
            "".join(draw.choice("abc \n") for _ in range(draw.randint(1, 3))).encode() for _ in range(VOCABULARY)
        ]
        self.pieces[10], self.pieces[11], self.pieces[12] = EURO[:1], EURO[1:], b"a" + EURO[:2]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Not the tokens that would be decoded to it, but as good a prompt."""
        return [6 + ord(character) % 50 for character in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool, **options: Any) -> str:
        names = {number: name.encode() for name, number in SPECIALS.items()}
        special = {number: b"" if skip_special_tokens else name for number, name in names.items()}
        return b"".join(special.get(one, self.pieces[one]) for one in ids).decode(errors="replace")


def pieces_tokenizer() -> ChatTokenizer:
    return ChatTokenizer(backend=Backend(), eos_id=EOS, stop_ids=(EOS,), specials=SPECIALS)
