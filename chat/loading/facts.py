"""What is known of a checkpoint: one frozen value, and how `/model` shows it. Knows no file and no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chat.text.tokenizer import ChatTokenizer
    from dist.checkpoint.digest import Digests
    from dist.checkpoint.ledger import Ledger
    from dist.model.load import LoadedModel, ModelFacts

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
NO_TEMPLATE = "none: prompts are sent as they are"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """The facts of the checkpoint that answers.

    model          what is known of the model
    processes      ranks that hold it
    ready_seconds  how long it took until it could answer
    template       the chat template that counts, in words
    stop_tokens    what ends a reply and why, in words
    ledger         what of the checkpoint is used, and what not
    about          a few words on the embedded model, else None
    digest         what tells its content from another's, and tokenizer_digest that of its tokenizer; "" if unknown
    whole_digest   the digest of its every byte, "" if they were not all read
    """

    model: ModelFacts
    processes: int
    ready_seconds: float
    template: str
    stop_tokens: str
    ledger: Ledger
    about: str | None = None
    digest: str = ""
    tokenizer_digest: str = ""
    whole_digest: str = ""

    @property
    def checkpoint(self) -> str:
        """The folder that holds the weights."""
        return str(self.model.path)

    @property
    def step(self) -> int | None:
        """The step of the run, None outside a run."""
        return self.model.step

    @property
    def who(self) -> str:
        """The checkpoint as the subject of a sentence."""
        return "This model" if self.step is None else f"Step {self.step}"

    @property
    def conditions(self) -> dict[str, str]:
        """What of it decides replies, for files of results."""
        return {"checkpoint": self.checkpoint, "digest": self.digest, "dtype": self.model.dtype}

    def in_copies(self, words: str) -> CheckpointFacts:
        """The same, where there are several copies of the model; `words` say how many."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, parallel=words))

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for the journal and for exports."""
        model = {
            field.name: getattr(self.model, field.name)
            for field in dataclasses.fields(self.model)
            if field.name not in ("path", "ledger")
        }
        return {
            "checkpoint": self.checkpoint,
            **model,
            "digest": self.digest,
            "tokenizer_digest": self.tokenizer_digest,
            "whole_digest": self.whole_digest,
            "processes": self.processes,
            "ready_seconds": self.ready_seconds,
            "chat_template": self.template,
            "stop_tokens": self.stop_tokens,
            "not_used": list(self.ledger.short_lines()),
            **({} if self.about is None else {"about": self.about}),
        }


def checkpoint_facts(
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    use_template: bool,
    ranks: int,
    seconds: float,
    about: str | None = None,
    digests: Digests | None = None,
) -> CheckpointFacts:
    """The facts of a loaded model. `seconds`: how long it took until the model could answer."""
    template = tokenizer.template if use_template else None
    return CheckpointFacts(
        model=loaded.facts,
        processes=ranks,
        ready_seconds=round(seconds, 1),
        template=NO_TEMPLATE if template is None else template.words,
        stop_tokens=tokenizer.stop_words(),
        ledger=loaded.facts.ledger.plus(tokenizer.entries),
        about=about,
        digest=digests.checkpoint if digests is not None else "",
        tokenizer_digest=digests.tokenizer if digests is not None else "",
        whole_digest=digests.whole if digests is not None else "",
    )


def facts_table(facts: CheckpointFacts) -> Iterator[tuple[str, str]]:
    """What `/model` shows, as (name, value) rows; a fact that is not known has none."""
    model = facts.model
    yield "checkpoint", facts.checkpoint
    if model.step is not None:
        yield "step", str(model.step)
    if facts.digest:
        yield "digest", facts.digest
    if facts.whole_digest:
        yield "of every byte", facts.whole_digest
    yield "layout", f"{model.layout}, torch {model.torch_family}" if model.torch_family else model.layout
    if model.adapters:
        yield "adapters", model.adapters
    yield "world size", f"{model.saved_world_size} when saved, {facts.processes} now"
    yield "model", model.model_type
    yield "parameters", f"{model.parameters:,} ({short_count(model.parameters)})"
    yield (
        "dtype",
        model.dtype if model.saved_dtype == model.dtype else f"{model.dtype}, saved as {model.saved_dtype}",
    )
    yield "parallel", model.parallel
    yield "memory per rank", f"{size(model.bytes_per_rank)} of weights"
    speed = model.load_bytes / max(model.load_seconds, 1e-3)
    yield "read", f"{size(model.load_bytes)} per rank in {model.load_seconds:.1f} s, {size(speed)}/s"
    yield "chat template", facts.template
    yield "replies end at", facts.stop_tokens
    for manner in facts.ledger.readings:
        yield "tensors", manner
    yield "used", facts.ledger.counts()
    for number, line in enumerate(facts.ledger.short_lines()):
        yield "" if number else "not used", line
    if facts.about is not None:
        yield "about", facts.about
    yield "ready in", f"{facts.ready_seconds} s"


def reading(what: str, done: int, total: int, seconds: float) -> str:
    """How far reading has come: bytes done, of how many, in how many seconds."""
    return f"{what}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, {done / max(seconds, 1e-3) / 1e9:.2f} GB/s"


def size(count: float) -> str:
    """A number of bytes in the largest unit that leaves at least 1."""
    power = 0
    while count >= 1024 and power < len(UNITS) - 1:
        count /= 1024
        power += 1
    return f"{count:.0f} {UNITS[power]}" if power == 0 else f"{count:.1f} {UNITS[power]}"


def short_count(count: int) -> str:
    """A number of parameters as people say it: 7.6 B, 494.0 M, 12.3 K."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)
