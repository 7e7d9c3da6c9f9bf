"""Other weights for a model that is loaded, on all ranks together, read where the old ones are. Knows no text.

Everything that can be checked is checked on every rank before the first byte is overwritten. If reading fails after
that, the old folder is read again; if that fails too, WeightsLost is raised on every rank.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from dist.checkpoint.digest import digests
from dist.checkpoint.open import Checkpoint
from dist.checkpoint.verify import verify
from dist.errors import CheckpointError, WeightsLost
from dist.model.build import wanted_tensors
from dist.model.fill import Filler, FillPlan, OnProgress, together
from dist.model.load import LoadedModel, Planned, model_facts, plan_fill
from dist.protocol import Group, Load

SHOWN = 3
# What a config may say otherwise without the model being another one: what only training, decoding or files use.
NO_MATTER = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "initializer_range",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
NO_MATTER_ENDS = ("_token_id", "dropout", "_aux_loss_coef", "output_router_logits")

Open = Callable[[str], Checkpoint]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A checkpoint that has been checked against the loaded model, and where its tensors go.

    `digest` is empty where it could not be read: then reading the weights will show what is wrong. `whole` is that
    of every byte, where they were all read.
    """

    checkpoint: Checkpoint
    digest: str
    whole: str = ""
    planned: Planned
    plan: FillPlan


class Reloader:
    """Swaps the weights of one loaded model. Every rank has one; `loaded` is what the model holds now.

    `open_folder` opens a folder as the first one was opened. Where rank 0 reads every byte of a checkpoint,
    `verifies` says that this rank does so for another host.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        group: Group,
        open_folder: Open,
        *,
        trust_remote_code: bool = False,
        verifies: bool = False,
    ) -> None:
        self.loaded = loaded
        self._group = group
        self._open = open_folder
        self._trust = trust_remote_code
        self._verifies = verifies

    def check(self, folder: str) -> Ready:
        """Open a folder and check on this rank all that can be checked; nothing is changed.

        Raises CheckpointError for what cannot be read, and for a model that is not the loaded one in other weights.
        """
        if self.loaded.placement is None:
            raise CheckpointError(
                "The weights cannot be changed while the program runs.",
                f"They are held as {self.loaded.facts.parallel}.",
                f"Start the program again with {folder}.",
            )
        try:
            checkpoint = self._open(folder)
            planned = plan_fill(checkpoint, getattr(torch, self.loaded.facts.dtype), self._trust)
        except OSError as problem:  # training removes old steps, perhaps in this moment
            raise CheckpointError(
                f"{folder} cannot be read.", f"{problem}.", "Check that it is still there and readable."
            ) from problem
        plan = planned.fill
        _check_same_model(self.loaded.module, plan.module, checkpoint)
        module = self.loaded.module
        return Ready(
            checkpoint=checkpoint,
            digest=_digest(checkpoint),
            planned=planned,
            plan=FillPlan(
                module=module,
                wanted=plan.wanted,
                sources=plan.sources,
                tied=plan.tied,
                in_place=True,
                boxes=self.loaded.boxes,
            ),
        )

    def check_same(self, order: Load) -> Ready:
        """As `check`, and that the folder holds what rank 0 has found there."""
        ready = self.check(order.path)
        whole = verify(ready.checkpoint).digest if order.whole and self._verifies else ""
        for mine, there in ((ready.digest, order.digest), (whole, order.whole)):
            if "" not in (mine, there) and mine != there:
                raise CheckpointError(
                    f"{order.path} on {os.uname().nodename} is not the checkpoint that it is on rank 0's host.",
                    f"Its digest is {mine}, on rank 0's host {there}.",
                    "Copy the same checkpoint to all hosts.",
                )
        return ready

    def swap(self, order: Load, ready: Ready | None = None, progress: OnProgress | None = None) -> None:
        """All ranks together: check the folder (unless this rank is `ready`) and read its weights.

        Other hosts must not have something else under its name than rank 0.

        Raises CheckpointError, on all ranks, if any of them cannot: the old weights are in place then. Raises
        WeightsLost if they could not be read again.
        """
        started = time.monotonic()
        agreed: Ready = together(self._group, lambda: ready or self.check_same(order))
        try:
            read = self._fill(agreed, progress)
        except CheckpointError as error:
            self._go_back(agreed, error, progress)
        facts = model_facts(
            agreed.checkpoint,
            self.loaded.module,
            planned=agreed.planned,
            dtype=self.loaded.facts.dtype,
            parallel=self.loaded.facts.parallel,
            load_seconds=time.monotonic() - started,
            load_bytes=read,
        )
        self.loaded = dataclasses.replace(self.loaded, facts=facts)

    def _fill(self, ready: Ready, progress: OnProgress | None) -> int:
        assert self.loaded.placement is not None
        # Looked up only now: tensors of the model that `ready` held on to could not be freed meanwhile.
        plan = dataclasses.replace(ready.plan, wanted=wanted_tensors(self.loaded.module))
        filler = Filler(self._group, plan, progress)
        filler.fill(self.loaded.placement)
        return filler.bytes_read

    def _go_back(self, failed: Ready, error: CheckpointError, progress: OnProgress | None) -> NoReturn:
        """Read the old folder again, then raise what went wrong."""
        old = str(self.loaded.facts.path)
        try:
            self._fill(together(self._group, lambda: self.check(old)), progress)
        except CheckpointError as second:
            raise WeightsLost(
                "The model no longer has any weights.",
                f"Reading {failed.checkpoint.path} failed half-way: {error.what} {error.why} "
                f"Reading {old} again failed too: {second.what} {second.why}",
            ) from second
        raise CheckpointError(
            error.what, error.why, f"{error.hint} The weights of {old} are in place again.".strip()
        )


def _digest(checkpoint: Checkpoint) -> str:
    try:
        return digests(checkpoint).checkpoint
    except CheckpointError:
        return ""


def _check_same_model(loaded: Any, new: Any, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless the two modules differ in their weights only."""
    differing = []
    if type(new).__name__ != type(loaded).__name__:
        differing.append(f"it is a {type(new).__name__}, the loaded one is a {type(loaded).__name__}")
    here, there = loaded.config.to_dict(), new.config.to_dict()
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name) and name not in NO_MATTER and not name.endswith(NO_MATTER_ENDS):
            differing.append(f"its {name} is {there.get(name)}, the loaded one's {here.get(name)}")
    if differing:
        more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.path} holds another model than the loaded one.",
            f"It differs: {'; '.join(differing[:SHOWN])}{more}.",
            "Only weights can be changed while the program runs. Start the program again with that folder.",
        )
