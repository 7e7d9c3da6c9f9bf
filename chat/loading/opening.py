"""From what was asked for to a checkpoint and a model, on every rank. Knows no conversation and no screen."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from chat.demo import demo_folder, is_ready
from chat.loading.step_list import AskedStep, asked_steps, first_there
from chat.loading.trial import undecided, until_decided
from chat.start.options import LaunchOptions, version_text
from dist.checkpoint.digest import Digests
from dist.checkpoint.open import Checkpoint, open_checkpoint
from dist.errors import CheckpointError, PromptError
from dist.protocol import EndsAt
from dist.settings import GenerationSettings

if TYPE_CHECKING:
    from chat.loading.facts import CheckpointFacts
    from chat.text.tokenizer import ChatTokenizer, TokenizerFiles, TokenizerOptions
    from dist.decode.engine import Engine
    from dist.group.agreement import Intent
    from dist.group.group import SoloGroup, TorchGroup
    from dist.model.reload import Reloader


# Options that all ranks have to agree on. The others are rank 0's alone, or the checkpoint's digest shows them.
SHARED_OPTIONS = ("parallel", "dtype", "lora_alpha", "trust_remote_code", "exact")


def import_libraries(options: LaunchOptions) -> None:
    """Every rank, before it meets the others: all that `load` imports."""
    from dist.model.libraries import import_libraries

    try:
        # verl imports what it likes.
        import_libraries(spare=options.parallel != "verl")
        import dist.decode.engine
        import dist.model.load
        import dist.model.reload  # noqa: F401
    finally:
        # The garbage collector would scan everything imported for nothing: 0.2 s without a key or a pass.
        # Before the model is built: a frozen one would not be freed by /load.
        gc.freeze()
        gc.enable()


def intent(
    options: LaunchOptions, checkpoint: Checkpoint | None, digest: Digests | None, problem: str | None = None
) -> Intent:
    """What this rank is about to do, for the others to compare with.

    `digest` is the checkpoint's, `problem` why this rank has none.
    """
    from dist.group.agreement import Intent

    return Intent(
        options={name: str(getattr(options, name)) for name in SHARED_OPTIONS},
        checkpoint=None if digest is None else digest.checkpoint,
        whole=None if digest is None else digest.whole or None,
        path="" if checkpoint is None else str(checkpoint.path),
        problem=problem,
        program=version_text(),
    )


def load(
    options: LaunchOptions,
    group: SoloGroup | TorchGroup,
    checkpoint: Checkpoint,
    mode: str,
    progress: Callable[[int, int], None] | None = None,
    ends: EndsAt | None = None,
) -> tuple[Engine, Reloader]:
    """All ranks of a group, together: the model, ready to answer. What one cannot read, all refuse with its reason.

    `mode`: how the model is spread over the group. `ends` finds stop texts, on the rank that leads.
    """
    from dist.decode.engine import Engine
    from dist.model.load import load_model
    from dist.model.onednn import packing_pays
    from dist.model.reload import Reloader

    loaded = load_model(
        checkpoint,
        group,
        parallel=mode,
        dtype=options.dtype,
        progress=progress,
        trust_remote_code=options.trust_remote_code,
        exact=options.exact,
    )
    reloader = Reloader(
        loaded,
        group,
        partial(open_folder, options),
        trust_remote_code=options.trust_remote_code,
        verifies=reads_for_host(),
    )
    engine = Engine(
        loaded.module,
        group,
        max_positions=loaded.max_positions,
        reloader=reloader,
        head=loaded.head,
        packed=packing_pays(loaded.device, loaded.placement),
        captured=loaded.placement not in (None, "shares"),
        ends=ends,
    )
    return engine, reloader


def reads_for_host() -> bool:
    """Whether this rank reads what one of its host has to read whole."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def open_asked(options: LaunchOptions) -> Checkpoint:
    """The checkpoint that the options name first, opened but not read. Raises CheckpointError."""
    if options.steps:
        return first_there(open_steps(options))
    return open_folder(options, checkpoint_folder(options))


def open_steps(options: LaunchOptions) -> Iterator[AskedStep]:
    """The checkpoints that are to answer in turn. Raises CheckpointError and UsageError."""
    return asked_steps(options.steps, checkpoint_folder(options), options.base_model, partial(open_folder, options))


def open_folder(options: LaunchOptions, folder: str) -> Checkpoint:
    """Any checkpoint, with the base model and the alpha that the options name. Raises CheckpointError."""
    return open_checkpoint(folder, base_model=options.base_model, lora_alpha=options.lora_alpha)


def read_files(options: LaunchOptions, checkpoint: Checkpoint, template_args: Mapping[str, Any]) -> TokenizerFiles:
    """The tokenizer's files; what they and config.json show by themselves is refused. Raises CheckpointError.

    No library is imported for that, which would take several times as long.
    """
    from chat.text.tokenizer import read_tokenizer
    from dist.checkpoint.config_names import refuse_by_names

    refuse_by_names(checkpoint.config_dir / "config.json", checkpoint.config)
    return read_tokenizer(checkpoint.tokenizer_dir, _tokenizer_options(options, checkpoint, template_args))


def open_tokenizer(
    options: LaunchOptions,
    checkpoint: Checkpoint,
    template_args: Mapping[str, Any] | None = None,
    files: TokenizerFiles | None = None,
) -> ChatTokenizer:
    """The checkpoint's tokenizer with its chat template, checked against its config. Raises CheckpointError.

    What the config describes is refused first: transformers reads it for tokenizers too, and would blame those.
    `files` are the tokenizer's if they have been read already.
    """
    from chat.text.tokenizer import load_tokenizer
    from dist.checkpoint.model_config import describe

    described = describe(checkpoint.config_dir, checkpoint.config, trust_remote_code=options.trust_remote_code)
    asked = replace(
        _tokenizer_options(options, checkpoint, template_args or {}),
        config=described.whole,
        rows=getattr(described.config, "vocab_size", None),
    )
    return load_tokenizer(checkpoint.tokenizer_dir, checkpoint.generation_config, asked, files)


def _tokenizer_options(
    options: LaunchOptions, checkpoint: Checkpoint, template_args: Mapping[str, Any]
) -> TokenizerOptions:
    """What the tokenizer depends on, as far as config.json tells it."""
    from chat.text.tokenizer import TokenizerOptions
    from dist.checkpoint.config_names import saved_rows

    text = checkpoint.config.get("text_config")
    of_text = text.get("eos_token_id") if isinstance(text, dict) else None
    return TokenizerOptions(
        rows=saved_rows(checkpoint.config),
        model_eos=checkpoint.config.get("eos_token_id", of_text),
        placeholder=checkpoint.placeholder_id,
        use_template=options.use_chat_template,
        template=options.chat_template,
        template_args=template_args,
        trust_remote_code=options.trust_remote_code,
    )


def checkpoint_folder(options: LaunchOptions) -> str:
    """The folder that was asked for, else the embedded model's. Raises CheckpointError."""
    if options.checkpoint_dir is not None:
        return options.checkpoint_dir
    if not is_ready():
        raise CheckpointError(
            "The embedded model is not prepared yet.",
            f"It would be in {demo_folder()}.",
            "Run `bash run_chat.sh`, or name a checkpoint with --checkpoint_dir.",
        )
    return str(demo_folder())


def start_notices(
    facts: CheckpointFacts, tokenizer: ChatTokenizer, use_template: bool, system: str
) -> tuple[str, ...]:
    """What is to be said at the start: what could change replies and is not used, and what counts unexpectedly."""
    notices = [f"Not used: {line}." for line in facts.ledger.warnings()]
    notices += tokenizer.notices
    template = tokenizer.template if use_template else None
    if template is not None and system and template.behaviour.system != "used":
        notices.append(f"The system prompt has no effect: the chat template {template.notices[0][3:]}.")
    return tuple(notices)


def warm_up(engine: Engine, settings: GenerationSettings, origins: Mapping[str, str]) -> str | None:
    """Make a GPU's kernels and graphs ready for these settings, or for what is tried out where they are undecided.

    Returns a notice about how replies are made, or None.
    """
    if engine.captures:
        try:
            engine.warm_up(until_decided(settings, undecided(origins), engine.auto_length))
        except PromptError as problem:
            # Weights that give no number, say: the user may want to load others.
            return str(problem)
    return engine.slow_notice
