"""A file whose text goes into a message: read whole and checked. Knows no conversation."""

from __future__ import annotations

from chat.files import expand
from dist.errors import ChatError, UsageError

MOST_BYTES = 32 << 20


def read_text(name: str) -> str:
    """The text of the file `name`: line ends are newlines, with none at its end.

    Raises UsageError for what is no text in UTF-8 or no regular file, for an empty file and for more than 32 MiB;
    ChatError if the disk refuses.
    """
    path = expand(name)
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder.", mend="Name a file.")
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise UsageError(f"{path} is no regular file.", mend="Name a file on disk.")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}.") from None
    except OSError as error:
        raise ChatError(f"{path} cannot be read.", f"{error.strerror}.") from error
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} is too large for a message.", f"It has more than {MOST_BYTES >> 20} MiB.")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not text in UTF-8.", f"Byte {error.start:,} cannot be read: {error.reason}."
        ) from None
    if not text.strip():
        raise UsageError(f"{path} is empty.")
    return text
