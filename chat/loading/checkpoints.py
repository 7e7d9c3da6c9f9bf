"""The checkpoint that a conversation talks to, the steps beside it, and how to turn to another. Draws nothing.

Only rank 0 has one. What is on disk is looked up at every call: a run that trains on adds steps and removes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chat.loading.facts import CheckpointFacts, checkpoint_facts
from chat.loading.named import Surroundings
from chat.loading.opening import open_folder, open_tokenizer, start_notices, warm_up
from chat.loading.progress import OnBytes
from chat.loading.watching import RunWatch
from chat.start.config_file import ConfigFile
from chat.start.options import LaunchOptions, resolve_settings
from dist.checkpoint.digest import digests
from dist.checkpoint.folder import Step, find_weights, latest_step
from dist.checkpoint.verify import verify
from dist.errors import CheckpointError
from dist.settings import GenerationSettings

if TYPE_CHECKING:
    from chat.text.tokenizer import ChatTokenizer
    from dist.decode.engine import Engine
    from dist.model.reload import Reloader


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The steps of a run as they are now, in the order of their numbers.

    loaded  the number of the step that answers, None if it is none of these
    latest  the number that the run's own file names, None if it names none
    """

    steps: tuple[Step, ...]
    loaded: int | None
    latest: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What a conversation goes on with after other weights were loaded.

    `settings` and `origins` are those of a start with this checkpoint; `slow_notice` says why answers take longer
    than they might, or is None; `notices` say what is not used and what counts unexpectedly.
    """

    tokenizer: ChatTokenizer
    use_template: bool
    settings: GenerationSettings
    origins: Mapping[str, str]
    facts: CheckpointFacts
    notices: tuple[str, ...]
    slow_notice: str | None


class Checkpoints:
    """Turns to other checkpoints. `run` is the folder of the run that the first one belongs to, if it does."""

    def __init__(
        self,
        *,
        engine: Engine,
        reloader: Reloader,
        tokenizer: ChatTokenizer,
        options: LaunchOptions,
        config: ConfigFile,
        ranks: int,
        run: Path | None,
    ) -> None:
        self._engine = engine
        self._reloader = reloader
        self._vocabulary = tokenizer.backend.get_vocab()
        self._options = options
        self._config = config
        self._ranks = ranks
        self._run = run

    def steps(self) -> Steps:
        """The steps beside the loaded one. Raises UsageError if it does not belong to a run."""
        steps = self._surroundings.steps()
        assert self._run is not None
        loaded = self._reloader.loaded.facts.step
        here = any(step.number == loaded for step in steps)
        return Steps(steps=steps, loaded=loaded if here else None, latest=latest_step(self._run))

    def weights_folder(self, argument: str) -> Path:
        """The folder of the weights that a step, a word or a path stands for now. Raises ChatError."""
        return find_weights(self._surroundings.folder(argument)).folder.absolute()

    def check(self, folder: Path) -> str:
        """Whether these weights could be taken over now; gives their digest. Raises CheckpointError."""
        return self._reloader.check(str(folder)).digest

    def watch(self, loaded: Callable[[], int | None], tell: Callable[[int | None], None]) -> RunWatch:
        """What watches the run, not yet begun. Raises UsageError if the checkpoint does not belong to one."""
        self._surroundings.steps()
        assert self._run is not None
        return RunWatch(self._run, loaded=loaded, opens=partial(open_folder, self._options), tell=tell)

    def load(self, argument: str, progress: OnBytes | None = None, verifying: OnBytes | None = None) -> Adopted:
        """All ranks take over the weights of a step or folder.

        `progress(done, total)` counts all ranks' bytes; before that, under `--verify`, `verifying` the bytes
        whose checksums have been compared.
        Raises ChatError with the old weights in place, or WeightsLost.
        """
        started = time.monotonic()
        ready = self._reloader.check(str(self._surroundings.folder(argument)))
        checkpoint = ready.checkpoint
        settings, origins = resolve_settings(
            self._options, self._config, checkpoint.generation_config, checkpoint.defaults
        )
        tokenizer = open_tokenizer(self._options, checkpoint, settings.template_arguments)
        self._check_vocabulary(tokenizer, checkpoint.tokenizer_dir)
        use_template = tokenizer.wants_template(self._options.use_chat_template)
        if self._options.verify:
            ready = replace(ready, whole=verify(checkpoint, verifying).digest)
        # Before anything is overwritten: what cannot be read must not seem to answer afterwards.
        found = replace(digests(checkpoint), whole=ready.whole)
        self._engine.load(ready, progress)
        self._run = run_folder(checkpoint.steps) or self._run
        seconds = time.monotonic() - started
        facts = checkpoint_facts(self._reloader.loaded, tokenizer, use_template, self._ranks, seconds, None, found)
        return Adopted(
            tokenizer=tokenizer,
            use_template=use_template,
            settings=settings,
            origins=origins,
            facts=facts,
            notices=start_notices(facts, tokenizer, use_template, ""),
            slow_notice=warm_up(self._engine, settings, origins),
        )

    @property
    def _surroundings(self) -> Surroundings:
        loaded = self._reloader.loaded
        base = self._options.base_model or str(getattr(loaded.module.config, "_name_or_path", ""))
        return Surroundings(opened=loaded.facts.path, run=self._run, base=base)

    def _check_vocabulary(self, tokenizer: ChatTokenizer, folder: Path) -> None:
        new, old = tokenizer.backend.get_vocab(), self._vocabulary
        if new == old:
            return
        differing = sorted(token for token in new.keys() | old.keys() if new.get(token) != old.get(token))
        raise CheckpointError(
            f"The tokenizer in {folder} has another vocabulary than the loaded one.",
            f"It has {len(new):,} tokens, the loaded one {len(old):,}; {len(differing):,} differ, "
            f"{differing[0]!r} for one.",
            "Only weights can be changed while the program runs. Start the program again with that folder.",
        )


def run_folder(steps: tuple[Step, ...]) -> Path | None:
    """The folder of the run that these steps lie in, absolute; None without steps."""
    return steps[0].path.parent.absolute() if steps else None
