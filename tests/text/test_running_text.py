"""The text of a prompt and its reply, without decoding the prompt again: what decoding all of it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from checkpoints import save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import pieces_tokenizer
from tokenizers import Tokenizer, decoders, models

from chat.text.running_text import text_with
from chat.text.tokenizer import load_tokenizer

Decode = Callable[[Sequence[int]], str]
# As SentencePiece has it: a blank is part of the word behind it, the first one is dropped, other bytes are tokens.
WORDS = ["<unk>", "</s>", "\u2581the", "\u2581", "sea", "\u2581sea", ",", "\n", "\u2581\u2581"]
WORDS += [f"<0x{byte:02X}>" for byte in range(256)]


def sentence_pieces() -> Decode:
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(WORDS)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["</s>"])
    return lambda ids: tokenizer.decode(list(ids))


@pytest.fixture(scope="module")
def decoders_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Decode, int]]:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    byte_level = load_tokenizer(folder)
    return {
        "byte level": (byte_level.decode, len(byte_level.backend)),
        "pieces": (pieces_tokenizer().decode, 61),
        "sentence pieces": (sentence_pieces(), len(WORDS)),
    }


@pytest.mark.parametrize("kind", ["byte level", "pieces", "sentence pieces"])
def test_it_is_the_text_of_all_tokens(kind: str, decoders_of: dict[str, tuple[Decode, int]]) -> None:
    decode, count = decoders_of[kind]
    asked: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        asked.append(len(ids))
        return decode(ids)

    ids = st.lists(st.integers(0, count - 1), max_size=40)

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(prompt=ids, reply=ids)
    def holds(prompt: list[int], reply: list[int]) -> None:
        assert text_with(counted, prompt, decode(prompt), reply) == decode([*prompt, *reply])

    holds()
    assert asked


def test_a_long_prompt_is_not_decoded_again(decoders_of: dict[str, tuple[Decode, int]]) -> None:
    decode, _ = decoders_of["sentence pieces"]
    asked: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        asked.append(len(ids))
        return decode(ids)

    prompt, reply = [2, 5, 6] * 200, [5, 4, 6]
    assert text_with(counted, prompt, decode(prompt), reply) == decode([*prompt, *reply])
    assert max(asked) < 30
