"""What tells one checkpoint from another, without reading all of its data. Knows no torch and no model.

The digest covers the content of the files beside the weights, and of the weights the CRC-32s that torch.save keeps
of every byte. Files without such sums count by their header and three samples of each tensor; the digest is then
labelled as sampled. `verify` takes every byte. Names count, the folder does not: a copy has the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dist.checkpoint.open import Checkpoint
from dist.checkpoint.torch_archive import ARCHIVE_ERRORS, Archive, Entries, Window, content_start
from dist.errors import CheckpointError
from dist.plain_json import parse_json

HEX_DIGITS = 16
SAMPLE_BYTES = 4096
# Files that count as they are, where they exist.
MODEL_FILES = ("config.json", "generation_config.json", "adapter_config.json", "lora_train_meta.json")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model"),
    *("special_tokens_map.json", "added_tokens.json"),
)
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """`checkpoint` ends with "(sampled)" where not every byte of the weights counts; `tokenizer` is its own.

    `whole` is that of every byte, where `verify` has read them, else "".
    """

    checkpoint: str
    tokenizer: str
    whole: str = ""


class _Content:
    """What was taken into a digest so far, and whether some of it is samples only."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self.sampled = False

    def add(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._sum.update(piece)

    @property
    def word(self) -> str:
        return self._sum.hexdigest()[:HEX_DIGITS]


def digests(checkpoint: Checkpoint) -> Digests:
    """The digests of an open checkpoint and of its tokenizer. Raises CheckpointError if a file cannot be read."""
    content = _Content()
    try:
        content.add(*beside(checkpoint))
        for archive in sorted(checkpoint.archives, key=lambda one: (one.path.name, one.start)):
            _add_archive(archive, content)
        for path in bare_files(checkpoint):
            _add_samples(path, content)
        tokenizer = tokenizer_digest(checkpoint.tokenizer_dir)
    except OSError as problem:
        raise CheckpointError(
            f"{problem.filename or checkpoint.path} cannot be read.", f"{problem.strerror}.", "Copy it again."
        ) from problem
    sampled = " (sampled)" if content.sampled else ""
    return Digests(checkpoint=content.word + sampled, tokenizer=tokenizer)


def bare_files(checkpoint: Checkpoint) -> list[Path]:
    """The weight files that are no archives of torch.save, in the order in which they count."""
    return sorted(
        set(checkpoint.files) - {archive.path for archive in checkpoint.archives}, key=lambda one: one.name
    )


def tokenizer_digest(folder: Path) -> str:
    """What tells one tokenizer from another: its own files; chat templates do not count. Raises OSError."""
    content = hashlib.sha256()
    for piece in _whole(folder, TOKENIZER_FILES):
        content.update(piece)
    with suppress(OSError, ValueError):
        config = parse_json((folder / TOKENIZER_CONFIG).read_bytes())
        config.pop("chat_template", None)
        content.update(json.dumps(config, sort_keys=True).encode())
    return content.hexdigest()[:HEX_DIGITS]


def beside(checkpoint: Checkpoint) -> Iterator[bytes]:
    """The content of the files beside the weights, each after its name."""
    for folder in dict.fromkeys((checkpoint.config_dir, checkpoint.path)):
        yield from _whole(folder, MODEL_FILES)
    yield from _whole(checkpoint.tokenizer_dir, (*TOKENIZER_FILES, TOKENIZER_CONFIG, *TEMPLATE_FILES))


def _whole(folder: Path, names: Iterable[str]) -> Iterator[bytes]:
    for name in names:
        path = folder / name
        if path.is_file():
            data = path.read_bytes()
            yield f"{name} {len(data)}\n".encode()
            yield data


def _add_archive(archive: Archive, content: _Content) -> None:
    """The directory of an archive: names, sizes and checksums; samples of what has none."""
    size = archive.path.stat().st_size if archive.length is None else archive.length
    content.add(f"{archive.path.name} {archive.holds} {size}\n".encode())
    try:
        with archive.path.open("rb") as file, Entries(Window(file, archive.start, size)) as entries:
            for entry in entries.infolist():
                name = entry.filename.partition("/")[2]  # the first part is the file's own name
                if entries.has_sums:
                    content.add(f"{name} {entry.file_size} {entry.CRC}\n".encode())
                else:
                    content.sampled = True
                    content.add(f"{name} {entry.file_size}\n".encode())
                    content.add(*_spread(file, content_start(file, entry, archive.start), entry.compress_size, 3))
    except ARCHIVE_ERRORS as problem:
        raise CheckpointError(f"{archive.path} is damaged.", f"{problem}.", "Copy it again.") from problem


def _add_samples(path: Path, content: _Content) -> None:
    """The header of a safetensors file and samples of its tensors; of any other file samples of all of it."""
    content.sampled = True
    size = path.stat().st_size
    with path.open("rb") as file:
        content.add(f"{path.name} {size}\n".encode())
        length = int.from_bytes(file.read(8), "little")
        header: object = None
        if path.suffix == ".safetensors" and length < size:
            data = file.read(length)
            content.add(data)
            with suppress(ValueError):
                header = parse_json(data)
        if not isinstance(header, dict):
            content.add(*_spread(file, 0, size, 64))
            return
        for name in sorted(header.keys() - {"__metadata__"}):
            first, end = header[name]["data_offsets"]
            content.add(*_spread(file, 8 + length + first, end - first, 3))


def _spread(file: BinaryIO, start: int, size: int, count: int) -> Iterator[bytes]:
    """`count` samples of `size` bytes of a file, the beginning and the end among them."""
    last = max(0, size - SAMPLE_BYTES)
    for at in dict.fromkeys(last * number // max(1, count - 1) for number in range(count)):
        file.seek(start + at)
        yield file.read(min(SAMPLE_BYTES, size - at))
