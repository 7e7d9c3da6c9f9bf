"""From what was asked for to a checkpoint and a model, on every rank. Knows no conversation and no screen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from chat.demo import demo_folder, is_ready
from chat.start.options import LaunchOptions
from dist.checkpoint.open import Checkpoint, open_checkpoint
from dist.errors import CheckpointError, PromptError
from dist.settings import GenerationSettings

if TYPE_CHECKING:
    from dist.decode.engine import Engine
    from dist.group.group import SoloGroup, TorchGroup
    from dist.model.reload import Reloader


def import_libraries(options: LaunchOptions) -> None:
    """Every rank, before it meets the others: all that `load` imports."""
    from dist.model.libraries import import_libraries

    # verl imports what it likes.
    import_libraries(spare=options.parallel != "verl")
    import dist.decode.engine
    import dist.model.load
    import dist.model.reload  # noqa: F401


def load(
    options: LaunchOptions,
    group: SoloGroup | TorchGroup,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Engine, Reloader]:
    """Every rank, together: the model, ready to answer. What one rank cannot read, all refuse with its words."""
    from dist.decode.engine import Engine
    from dist.model.load import load_model
    from dist.model.onednn import packing_pays
    from dist.model.reload import Reloader

    problem = None
    try:
        checkpoint = checkpoint or open_asked(options)
    except CheckpointError as error:
        problem = str(error)
    for rank, text in group.gather_errors(problem).items():
        raise CheckpointError(f"Rank {rank} cannot use the checkpoint:", text)
    assert checkpoint is not None
    loaded = load_model(
        checkpoint,
        group,
        parallel=options.parallel,
        dtype=options.dtype,
        progress=progress,
        trust_remote_code=options.trust_remote_code,
    )
    reloader = Reloader(
        loaded,
        group,
        partial(open_folder, options),
        trust_remote_code=options.trust_remote_code,
    )
    engine = Engine(
        loaded.module,
        group,
        max_positions=loaded.max_positions,
        reloader=reloader,
        head=loaded.head,
        packed=packing_pays(loaded.device, loaded.placement),
        captured=loaded.placement not in (None, "shares"),
    )
    return engine, reloader


def open_asked(options: LaunchOptions) -> Checkpoint:
    """The checkpoint that the options name, opened but not read. Raises CheckpointError."""
    return open_folder(options, checkpoint_folder(options))


def open_folder(options: LaunchOptions, folder: str) -> Checkpoint:
    """Any checkpoint, with the base model and the alpha that the options name. Raises CheckpointError."""
    return open_checkpoint(folder, base_model=options.base_model, lora_alpha=options.lora_alpha)


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


def warm_up(engine: Engine, settings: GenerationSettings) -> str | None:
    """Make a GPU's kernels and graphs ready; returns what is to be said of how answers are made, or None."""
    if engine.captures:
        try:
            engine.warm_up(settings)
        except PromptError as problem:
            # Weights that give no number, say: the person may want to load others.
            return str(problem)
    return engine.remark
