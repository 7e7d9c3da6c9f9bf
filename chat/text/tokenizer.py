"""Text to token ids and back, by the checkpoint's own tokenizer. Knows no conversation and no model.

transformers is imported when a tokenizer is loaded, not before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist.errors import CheckpointError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTokenizer:
    """A tokenizer with an EOS token.

    backend   the transformers tokenizer
    eos_id    fills fresh blocks
    stop_ids  EOS and every further id that ends a reply
    """

    backend: Any
    eos_id: int
    stop_ids: tuple[int, ...]

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be put through a template of the checkpoint's."""
        return bool(self.backend.chat_template)

    def wants_template(self, asked: bool | None) -> bool:
        """Whether prompts go through the template: as asked, else where there is one. Raises UsageError."""
        if asked and not self.has_chat_template:
            raise UsageError(
                "--use_chat_template cannot be: the checkpoint's tokenizer has no chat template.",
                hint="Leave it out; prompts then go to the model as they are.",
            )
        return self.has_chat_template if asked is None else asked

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """The ids of `text`; with `special` also those that the tokenizer puts around it (a leading BOS, say)."""
        return tuple(self.backend.encode(text, add_special_tokens=special))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no whole character become U+FFFD."""
        text: str = self.backend.decode(
            list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        return text

    def without_stop(self, ids: Sequence[int]) -> tuple[int, ...]:
        """`ids` without the stop token at their end, if there is one."""
        return tuple(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)


def load_tokenizer(
    folder: Path, generation_config: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False
) -> ChatTokenizer:
    """The tokenizer in `folder`. Ids in the raw `generation_config` end replies too.

    Raises CheckpointError for files that cannot be read, and for a tokenizer without EOS or one that turns text
    into nothing.
    """
    from transformers import AutoTokenizer

    _check_config(folder, trust_remote_code)
    try:
        backend = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise _broken(folder, error) from error
    if backend.eos_token_id is None:
        raise CheckpointError(
            f"The tokenizer in {folder} ({type(backend).__name__}) has no EOS token.",
            "EOS is the placeholder that blocks are refined from, and it ends a reply.",
            "Set eos_token in its tokenizer_config.json.",
        )
    if not backend.encode("text", add_special_tokens=False):
        raise CheckpointError(
            f"The tokenizer in {folder} turns text into no tokens at all.",
            "Its vocabulary is empty, so one of its files is missing or cut short.",
            "Copy the tokenizer's files again from the model that was trained.",
        )
    eos_id = int(backend.eos_token_id)
    more = _generation_stop_ids(generation_config or {})
    return ChatTokenizer(backend=backend, eos_id=eos_id, stop_ids=tuple(dict.fromkeys((eos_id, *more))))


def _broken(folder: Path, error: Exception) -> CheckpointError:
    """Why the tokenizer cannot be loaded: the file that is no JSON, else what transformers says."""
    why = f"{type(error).__name__}: {error}"
    for path in sorted(folder.glob("*token*.json")):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError) as fault:
            why = f"{path.name} is not JSON ({fault}); it may be cut short, or a Git LFS pointer."
    return CheckpointError(
        f"The tokenizer in {folder} cannot be loaded.",
        why,
        "Copy the tokenizer's files again from the model that was trained.",
    )


def _check_config(folder: Path, trust_remote_code: bool) -> None:
    """Refuse a config.json that transformers refuses: it reads that file too, and would blame the tokenizer."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        return
    try:
        AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError) as error:
        raise CheckpointError(
            f"transformers cannot read {folder / 'config.json'}.",
            str(error).strip().splitlines()[-1].strip(),
            "Copy the file again from the model that was trained, or install the transformers that wrote it.",
        ) from error


def _generation_stop_ids(generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids under `eos_token_id`, which may be missing, null, a number or a list of numbers."""
    named = generation_config.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in ids):
        raise CheckpointError(
            f"In the checkpoint's generation_config.json, eos_token_id cannot be {named!r}.",
            "It takes a token id or a list of token ids.",
            "Correct the file.",
        )
    return tuple(ids)
