"""Text to token ids and back, by the checkpoint's own tokenizer. Knows no conversation and no model.

transformers is imported when a tokenizer is loaded, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat.text.stop_tokens import TURN_END, ends_of, model_eos
from chat.text.template import ChatTemplate, Trial, take_template
from chat.text.tokenizer_checks import check_eos, check_rows
from chat.text.tokenizer_file import TokenizerFile, as_the_file_says, read_tokenizer_file
from dist.checkpoint.config_keys import tokenizer_entries
from dist.checkpoint.folder import read_json
from dist.checkpoint.ledger import TEMPLATES, Entry
from dist.checkpoint.templates import Template, Templates, find_templates, special_tokens
from dist.errors import CheckpointError, UsageError
from dist.plain_json import parse_json

COPY_AGAIN = "Copy the tokenizer's files again from the model that was trained."
# What is remembered of texts that were encoded: how many, up to which length.
KNOWN_TEXTS, KNOWN_CHARACTERS = 20_000, 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTokenizer:
    """A tokenizer with an EOS token.

    backend   the transformers tokenizer
    eos_id    fills fresh blocks
    stop_ids  EOS and every further id that ends a reply
    ends      why each of them does
    template  what messages are put through, if there is a chat template
    entries   what of the tokenizer's files is used
    notices   what is to be said at the start
    rows      embeddings that the model has; None if unknown
    specials  ids of the special tokens, which have no text in a reply
    """

    backend: Any
    eos_id: int
    stop_ids: tuple[int, ...]
    ends: Mapping[int, str] = field(default_factory=dict)
    template: ChatTemplate | None = None
    entries: tuple[Entry, ...] = ()
    notices: tuple[str, ...] = ()
    rows: int | None = None
    specials: Mapping[str, int] = field(default_factory=dict)
    _known: dict[tuple[str, bool], tuple[int, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be put through a template of the checkpoint's."""
        return self.template is not None

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may encode at a time: where that is done in native code."""
        return getattr(self.backend, "is_fast", False)

    def stop_words(self) -> str:
        """The tokens that end a reply and why, for people."""
        return ", ".join(
            f"{self.backend.convert_ids_to_tokens(one)} ({one}: {self.ends.get(one, 'as asked')})"
            for one in self.stop_ids
        )

    def wants_template(self, asked: bool | None) -> bool:
        """Whether prompts go through the template: as asked, else where there is one. Raises UsageError."""
        if asked and not self.has_chat_template:
            raise UsageError(
                "--use_chat_template is not possible: the checkpoint has no chat template.",
                hint="Leave it out; prompts then go to the model as they are.",
            )
        return self.has_chat_template if asked is None else asked

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """The ids of `text`; with `special` also those that the tokenizer puts around it (a leading BOS, say)."""
        # Every turn asks for the same earlier messages again.
        ids = self._known.get((text, special))
        if ids is None:
            ids = tuple(self.backend.encode(text, add_special_tokens=special))
            if len(text) <= KNOWN_CHARACTERS:
                if len(self._known) >= KNOWN_TEXTS:
                    self._known.clear()
                self._known[text, special] = ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no whole character become U+FFFD."""
        text: str = self.backend.decode(
            list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        return text

    def without_stop(self, ids: Sequence[int]) -> tuple[int, ...]:
        """`ids` without the stop token at their end, if there is one."""
        return tuple(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """What loading a tokenizer depends on besides its files.

    config        the model's transformers config; None: read from the folder
    rows          embeddings that the model has; None if unknown
    model_eos     eos_token_id of the model's config.json, which counts where generation_config.json names none
    placeholder   fills fresh blocks instead of EOS
    use_template  None: where there is one
    template      a name or a file to take the chat template from
    template_args what it is given besides messages
    """

    config: Any = None
    rows: int | None = None
    model_eos: Any = None
    placeholder: int | None = None
    use_template: bool | None = None
    template: str | None = None
    template_args: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """A tokenizer's files, checked as far as no library is needed.

    `chosen` is the chat template to use, `trial` that template tried out, if there is anything in it.
    """

    file: TokenizerFile
    templates: Templates
    chosen: Template | None
    trial: Trial | None


def read_tokenizer(folder: Path, options: TokenizerOptions) -> TokenizerFiles:
    """The files of the tokenizer in `folder`. Imports nothing of transformers.

    Raises CheckpointError for what no tokenizer can make good: files that cannot be read, ids that the model has no
    embedding for, a chat template that has to be chosen or cannot be used.
    """
    templates = find_templates(folder)
    chosen = None if options.use_template is False else templates.choose(options.template)
    trial = None
    if chosen is not None and chosen.text.strip():
        trial = Trial(chosen, special_tokens(read_json(folder / "tokenizer_config.json")))
    file = read_tokenizer_file(folder)
    if not options.trust_remote_code:  # code that lies there may read other files
        if file.eos is not None and file.content:
            check_eos(folder, file.eos, file.ids, options.rows)
        if options.rows is not None:
            check_rows(folder, file.ids, options.rows)
        # A tokenizer's class may know further special tokens.
        if trial is not None and not trial.lacks():
            trial.take(options.template_args)
    return TokenizerFiles(file=file, templates=templates, chosen=chosen, trial=trial)


def load_tokenizer(
    folder: Path,
    generation_config: Mapping[str, Any] | None = None,
    options: TokenizerOptions = TokenizerOptions(),  # frozen
    files: TokenizerFiles | None = None,
) -> ChatTokenizer:
    """The tokenizer in `folder`. Ids in the raw `generation_config` end replies too, as does the end of a turn.

    `files` are those of the folder if they have been read already. Raises CheckpointError for files that cannot be
    read, a tokenizer without EOS or one that turns text into nothing, ids that the model has no embedding for, and
    a chat template that cannot be used.
    """
    files = files or read_tokenizer(folder, options)
    found, chosen = files.templates, files.chosen
    backend, entries = _backend(folder, files.file, options)
    notices: list[str] = []
    _check_ids(backend, files.file, options.rows)
    template = None
    if chosen is not None and files.trial is None:
        notices.append(f"The chat template in {chosen.source} is empty: prompts are sent as they are.")
    elif chosen is not None:
        template = take_template(backend, chosen, options.template_args, files.trial)
        if not template.behaviour.history:
            notices.append(
                f"The chat template in {chosen.source} leaves out what was said before the last message."
            )
    unread = [name for name in options.template_args if template is None or name not in template.arguments]
    if unread:
        notices.append(f"template_args gives {', '.join(unread)}, which no chat template here reads.")
    ends = ends_of(backend, generation_config or {}, options, template)
    late = [token for token, why in ends.items() if why == TURN_END]
    notices += [f"Replies also end at {backend.convert_ids_to_tokens(one)} ({one}): {TURN_END}." for one in late]
    eos_id = int(backend.eos_token_id)
    others = [name for name in found.named if chosen is None or name != chosen.name]
    unchosen = [Entry(TEMPLATES, name, False, "--chat_template NAME takes it") for name in others]
    return ChatTokenizer(
        backend=backend,
        eos_id=eos_id if options.placeholder is None else options.placeholder,
        stop_ids=tuple(ends),
        ends=ends,
        template=template,
        entries=(
            *tokenizer_entries(read_json(folder / "tokenizer_config.json")),
            *found.entries,
            *entries,
            *unchosen,
            *model_eos(generation_config or {}, options),
            *(() if template is None else template.entries(options.template_args)),
        ),
        notices=tuple(notices),
        rows=options.rows,
        specials={token.content: one for one, token in backend.added_tokens_decoder.items() if token.special},
    )


def _backend(folder: Path, file: TokenizerFile, options: TokenizerOptions) -> tuple[Any, list[Entry]]:
    """The transformers tokenizer, and where tokenizer.json counts instead of its class. Raises CheckpointError."""
    from transformers import AutoTokenizer

    if options.config is None:
        _check_config(folder, options.trust_remote_code)
    config = {} if options.config is None else {"config": options.config}
    try:
        backend = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=options.trust_remote_code, **config
        )
        backend, differs = as_the_file_says(backend, file)
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
            COPY_AGAIN,
        )
    if differs is None:
        return backend, []
    entry = Entry("tokenizer_config.json", "tokenizer_class", False, f"tokenizer.json counts: {differs}")
    return backend, [entry]


def _check_ids(backend: Any, file: TokenizerFile, rows: int | None) -> None:
    """Raise CheckpointError for tokens that the model has no embedding for, and an EOS that no file names."""
    folder = file.path.parent
    if file.content:
        check_eos(folder, str(backend.eos_token), file.ids, rows)
    if rows is not None:
        special = {number for number, token in backend.added_tokens_decoder.items() if token.special}
        check_rows(folder, backend.get_vocab(), rows, special)


def _broken(folder: Path, error: Exception) -> CheckpointError:
    """Why the tokenizer cannot be loaded: the file that is no JSON, else what transformers says."""
    why = f"{type(error).__name__}: {error}"
    for path in sorted(folder.glob("*token*.json")):
        try:
            parse_json(path.read_bytes())
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
