"""Whether a model has an embedding for every token of its tokenizer.

Asked twice: of the tokenizer's files, before any library is imported, and of the tokenizer built from them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

from dist.errors import CheckpointError

# Tokens that stand for images and sound have no embeddings in the text part of some models, and need none.
FOR_MEDIA = ("image", "audio", "video", "vision", "boi", "eoi")


def check_eos(folder: Path, eos: str, tokens: Mapping[str, int], rows: int | None) -> None:
    """Raise CheckpointError for an EOS token that is not among `tokens`, those that the files in `folder` name."""
    if eos not in tokens:
        size = "" if rows is None else f" The model has {rows:,} embeddings."
        raise CheckpointError(
            f"The EOS token {eos} is not in the tokenizer of {folder}.",
            f"It would be given a new id, after those of the {len(tokens):,} tokens in its files.{size}",
            "Copy tokenizer.json and tokenizer_config.json from the same model.",
        )


def check_rows(folder: Path, ids: Mapping[str, int], rows: int, special: Container[int] | None = None) -> None:
    """Raise CheckpointError for tokens beyond the model's `rows` embeddings.

    `special` holds the ids of special tokens; None where that is not known.
    """
    beyond = {
        number: token
        for token, number in ids.items()
        if number >= rows
        and not (any(word in token for word in FOR_MEDIA) and (special is None or number in special))
    }
    if beyond:
        worst = max(beyond)
        raise CheckpointError(
            f"The tokenizer in {folder} has more tokens than the model has embeddings.",
            f"Its ids go up to {worst:,} ({beyond[worst]}); vocab_size is {rows:,}, the last row {rows - 1:,}.",
            "Copy tokenizer and config.json from the same model.",
        )
