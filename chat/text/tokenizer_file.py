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
    """What tokenizer.json holds, {} if there is none, and every token that the files in its folder name.

    ids       the tokens with their ids, -1 where no file tells
    settings  tokenizer_config.json as it is
    eos       the EOS token, None if the files name none, or more than one
    """

    path: Path
    content: Mapping[str, Any]
    ids: Mapping[str, int]
    settings: Mapping[str, Any]
    eos: str | None


def read_tokenizer_file(folder: Path) -> TokenizerFile:
    """The tokenizer.json in `folder` with the tokens of the files beside it."""
    content = _json(folder / "tokenizer.json")
    settings = _json(folder / "tokenizer_config.json")
    found: list[tuple[Any, Any]] = list(_vocabulary(content).items())
    found += _json(folder / "added_tokens.json").items()
    added = content.get("added_tokens")
    found += [(_text(one), one.get("id")) for one in _each(added) if isinstance(one, dict)]
    decoder = settings.get("added_tokens_decoder")
    found += [(_text(one), _number(key)) for key, one in decoder.items()] if isinstance(decoder, dict) else []
    named = {_text(one.get("eos_token")) for one in (settings, _json(folder / "special_tokens_map.json"))} - {None}
    return TokenizerFile(
        path=folder / "tokenizer.json",
        content=content,
        ids={token: number if isinstance(number, int) else -1 for token, number in found if isinstance(token, str)},
        settings=settings,
        eos=named.pop() if len(named) == 1 else None,
    )


def as_the_file_says(backend: Any, file: TokenizerFile) -> tuple[Any, str | None]:
    """`backend`, or a tokenizer read from tokenizer.json as it is; then also how they differ, in words."""
    own, content, named = getattr(backend, "backend_tokenizer", None), file.content, file.ids
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
    model = content.get("model")
    held = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(held, dict):
        return held
    pairs = [pair for pair in _each(held) if isinstance(pair, list) and pair]
    return {str(pair[0]): number for number, pair in enumerate(pairs)}  # Unigram: (token, score) in order


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(token: Any) -> str | None:
    """A token as the files hold it: its text, or an object with that."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _number(key: str) -> int | None:
    return int(key) if key.isdecimal() and len(key) < 10 else None


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
