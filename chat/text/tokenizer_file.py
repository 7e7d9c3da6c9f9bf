"""A tokenizer checked against its own tokenizer.json, which counts where both differ. Knows no template.

Some classes of transformers 5 build a pre-tokenizer and decoder of their own, whatever the file says: texts then
lose their blanks, and replies show byte marks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist.plain_json import parse_json

PARTS = ("normalizer", "pre_tokenizer", "decoder")
PROBES = (
    "The capital of France , is Paris.\n\n  x = 25*4\tdon't",
    "\u00e9\u00df\u4e16\u754c \U0001f600 na\u00efve \u2014 \u201cquoted\u201d",
    " leading and trailing ",
)
SPACING = ("add_prefix_space", "prepend_scheme")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFile:
    """What tokenizer.json holds, {} if there is none, and every token that the files in its folder name."""

    path: Path
    content: Mapping[str, Any]
    tokens: frozenset[str]
    settings: Mapping[str, Any]


def read_tokenizer_file(folder: Path) -> TokenizerFile:
    """The tokenizer.json in `folder` with the tokens of the files beside it."""
    content = _json(folder / "tokenizer.json")
    settings = _json(folder / "tokenizer_config.json")
    tokens = set(_vocabulary(content))
    tokens |= {str(one.get("content")) for one in content.get("added_tokens") or ()}
    added = settings.get("added_tokens_decoder") or {}
    tokens |= {str(one.get("content")) for one in added.values() if isinstance(one, dict)}
    tokens |= set(_json(folder / "added_tokens.json"))
    return TokenizerFile(
        path=folder / "tokenizer.json", content=content, tokens=frozenset(tokens), settings=settings
    )


def as_the_file_says(backend: Any, file: TokenizerFile) -> tuple[Any, str | None]:
    """`backend`, or a tokenizer read from tokenizer.json as it is; then also how they differ, in words."""
    own, content, named = getattr(backend, "backend_tokenizer", None), file.content, file.tokens
    if own is None or not content:
        return backend, None
    ignored = SPACING if "add_prefix_space" in file.settings else ()
    if not _differing(own, content, ignored, named):
        return backend, None
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    reference = Tokenizer.from_file(str(file.path))
    canonical = {**content, **{part: _state(getattr(reference, part)) for part in PARTS}}
    differing = _differing(own, canonical, ignored, named)
    differing += [] if differing or _agree(own, reference) else ["tokens of probe texts"]
    if not differing:
        return backend, None
    plain = PreTrainedTokenizerFast.from_pretrained(str(file.path.parent), local_files_only=True)
    return plain, f"{type(backend).__name__} of transformers differs from it in its {', '.join(differing)}"


def _differing(own: Any, content: Mapping[str, Any], ignored: tuple[str, ...], named: Collection[str]) -> list[str]:
    """The parts in which a built tokenizer differs from what tokenizer.json holds; `named`: tokens of all files."""
    found = [
        part.replace("_", "-")
        for part in PARTS
        if _without(_state(getattr(own, part)), ignored) != _without(content.get(part), ignored)
    ]
    vocabulary = own.get_vocab()
    if any(vocabulary.get(token) != number for token, number in _vocabulary(content).items()):
        found.append("vocabulary")
    if any(token not in named for token in vocabulary):
        found.append("added tokens")  # a class may add special tokens of its own
    return found


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    held = (content.get("model") or {}).get("vocab") or {}
    if isinstance(held, dict):
        return held
    return {str(pair[0]): number for number, pair in enumerate(held)}  # Unigram: (token, score) in order


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_without(one, names) for one in value]
    if isinstance(value, dict):
        return {name: _without(one, names) for name, one in value.items() if name not in names}
    return value


def _agree(own: Any, reference: Any) -> bool:
    for text in PROBES:
        ids = reference.encode(text, add_special_tokens=False).ids
        if own.encode(text, add_special_tokens=False).ids != ids or own.decode(ids) != reference.decode(ids):
            return False
    return True


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
