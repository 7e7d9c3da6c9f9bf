"""SmolLM2's tokenizer, rebuilt from the vocabulary in its GGUF file. Knows no weights.

Byte-level BPE of 49,152 entries that splits digits one by one before anything else. What transformers
makes of the same file by itself takes `<|im_start|>` for the end token, so its replies never end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 49_152
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
_NORMAL, _CONTROL = 1, 3  # GGUF's token types

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Every text must come back as it was: digits, scripts, code, odd blanks, markers as plain text.
ROUND_TRIPS = (
    "Hello, world!",
    "25 * 4 = 100; 3.14159; 2026-11-23; 0012",
    "don't they'll I've it's",
    "  two leading, trailing blanks  ",
    "tabs\tand\n\n\nnew lines\r\n",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    "Größe, naïve, Ελληνικά, русский, 中文字符, 日本語, العربية",
    "emoji 👩‍👩‍👧 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢, zero\u200bwidth, nbsp\u00a0here",
    "<b>&amp;</b> {'key': [1, 2]} \\n C:\\path",
    "a" * 300 + " " * 40,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the GGUF file says: token texts by id, merges as "left right", ids of the special tokens."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    special_ids: tuple[int, ...]


def read_vocabulary(fields: dict[str, Any]) -> Vocabulary:
    """The vocabulary from the GGUF file's metadata. Raises ValueError where it is not SmolLM2's."""
    expected = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.unknown_token_id": UNK_ID,
        "tokenizer.ggml.bos_token_id": BOS_ID,
        "tokenizer.ggml.eos_token_id": EOS_ID,
        "tokenizer.ggml.padding_token_id": EOS_ID,
    }
    for key, value in expected.items():
        if fields.get(key) != value:
            raise ValueError(f"{key} is {fields.get(key)!r}, not {value!r}")
    tokens = tuple(fields["tokenizer.ggml.tokens"])
    kinds = fields["tokenizer.ggml.token_type"]
    if len(tokens) != VOCAB_SIZE or len(set(tokens)) != VOCAB_SIZE or len(kinds) != VOCAB_SIZE:
        raise ValueError(f"the vocabulary holds {len(tokens)} tokens, not {VOCAB_SIZE}")
    if set(kinds) - {_NORMAL, _CONTROL}:
        raise ValueError(f"the vocabulary holds token types {sorted(set(kinds))}")
    special_ids = tuple(index for index, kind in enumerate(kinds) if kind == _CONTROL)
    return Vocabulary(tokens=tokens, merges=tuple(fields["tokenizer.ggml.merges"]), special_ids=special_ids)


def build_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A tokenizer with bos 1, eos = pad = 2, unk 0 and the plain ChatML template (no system prompt of its own)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in vocabulary.merges)]
    backend = Tokenizer(models.BPE(vocab=ids, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    names = [vocabulary.tokens[index] for index in vocabulary.special_ids]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=vocabulary.tokens[BOS_ID],
        eos_token=vocabulary.tokens[EOS_ID],
        pad_token=vocabulary.tokens[EOS_ID],
        unk_token=vocabulary.tokens[UNK_ID],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def write_tokenizer_config(folder: Path) -> None:
    """Replace `tokenizer_config.json` by one that transformers 4 and 5 read alike.

    Version 5 names a tokenizer class there that version 4 does not have.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def sample_ids(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token ids of every text of `ROUND_TRIPS`, then of a templated exchange."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 12 and 3."}]
    templated = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return [list(tokenizer.encode(text, add_special_tokens=False)) for text in (*ROUND_TRIPS, str(templated))]


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, expected: Sequence[Sequence[int]]) -> None:
    """Raises ValueError unless `tokenizer` has the right special ids, gives back every text, and makes the
    `expected` ids of the samples."""
    found = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if found != (UNK_ID, BOS_ID, EOS_ID, EOS_ID) or len(tokenizer) != VOCAB_SIZE:
        raise ValueError(f"unk, bos, eos, pad are {found}, {len(tokenizer)} entries")
    samples = sample_ids(tokenizer)
    for text, ids in zip(ROUND_TRIPS, samples):
        if tokenizer.decode(ids) != text:
            raise ValueError(f"{text!r} comes back as {tokenizer.decode(ids)!r}")
    if samples != [list(ids) for ids in expected]:
        raise ValueError("the reloaded tokenizer makes other ids than the one that was built")
