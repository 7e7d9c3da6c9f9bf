"""Replies decoded again under their own records: what is asked, and whether it came out the same. Knows no model.

Settings, seed and prompt are the recorded ones, and settings that changed in the middle of a reply change where
they did. The same tokens are promised in float32 on as many ranks as made them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from chat.sessions.nodes import Made, Node
from chat.sessions.records import CheckpointRecord
from chat.sessions.tree import Tree
from chat.text.prompt import most_tokens, prompt_digest, prompt_ids
from chat.text.tokenizer import ChatTokenizer
from dist.counted import counted
from dist.errors import ChatError, PromptError, UsageError
from dist.protocol import Reply, Turn
from dist.settings import SETTINGS, GenerationSettings, parse_setting

# Tokens of both sides that are shown where they part.
SHOWN_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A reply, and by how much the logit of each of its tokens led the second best, where that is known."""

    reply: Reply
    margin: Callable[[int], float | None]


class Model(Protocol):
    """What decodes replies again."""

    @property
    def tokenizer(self) -> ChatTokenizer: ...

    @property
    def use_template(self) -> bool: ...

    def turn_to(self, maker: CheckpointRecord | None) -> str:
        """Decode with what made a reply from here on, if asked to; returns why that cannot be done, or ""."""
        ...

    def decode(self, turn: Turn, doing: str) -> Decoded | None:
        """Decode a turn, shown as `doing`; None if the user stopped it. Raises UsageError if it cannot."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One reply to be decoded again. `problem` says why it cannot be, or is "".

    `other_prompt`: the prompt is not the one that the reply was made to, since the template is another one, say.
    """

    number: int
    question: str
    made: Made
    turn: Turn | None = None
    other_prompt: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a case came out. `at`: the first token that differs, None if none does; `margin`: its logit's lead."""

    case: Case
    at: int | None = None
    before: str = ""
    now: str = ""
    margin: float | None = None

    def __str__(self) -> str:
        case = self.case
        asked = " ".join(case.question[:200].split())[:40]
        head = f"{case.number}. {asked}: "
        if case.problem:
            return f"{head}not replayed, {case.problem}"
        other = " (the prompt is another one)" if case.other_prompt else ""
        count = len(case.made.token_ids)
        if self.at is None:
            return f"{head}same, {counted(count, 'token')}{other}"
        lead = "" if self.margin is None else f", where the top-2 margin is {self.margin:.2f} logits"
        return f"{head}first differs at token {self.at + 1} of {count}: `{self.before}` / `{self.now}`{lead}{other}"


def cases(tree: Tree) -> Iterator[tuple[Case, Node]]:
    """Every reply of a session, on all branches, in the order they were made."""
    replies = (node for node in tree.nodes() if node.made is not None)
    for number, node in enumerate(replies, 1):
        assert node.made is not None
        yield Case(number=number, question=tree.node(node.parent).text, made=node.made), node


def _asked(case: Case, tree: Tree, node: Node, model: Model) -> Case:
    """The case with what the model is asked, or why it cannot be asked."""
    record, tokenizer = case.made.turn, model.tokenizer
    if not record.settings:
        return dataclasses.replace(case, problem="its settings are not known.")
    transcript = tree.transcript(node.parent).for_model().without_oldest(record.left_out)
    try:
        before = tree.node(record.continues).made if record.continues is not None else None
        had = record.begun if before is None else len(before.token_ids)
        settings, changes = _settings(case.made, had)
        ids = prompt_ids(transcript, tokenizer, model.use_template, settings.template_arguments)
    except ChatError as error:
        return dataclasses.replace(case, problem=str(error))
    turn = Turn(
        prompts=(ids,),
        settings=settings,
        placeholder=tokenizer.eos_id,
        stop_ids=tokenizer.stop_ids,
        changes=(changes,) if changes else (),
        earlier=(case.made.token_ids,),
        begun=(case.made.token_ids[: record.begun],) if record.begun else (),
    )
    return dataclasses.replace(case, turn=turn, other_prompt=record.prompt not in ("", prompt_digest(ids)))


def _settings(made: Made, had: int) -> tuple[GenerationSettings, tuple[tuple[int, GenerationSettings], ...]]:
    """Those at the start, and those in force from later places on. `had`: tokens that it went on from."""
    # What was stopped would go on; it is asked for no more than there is.
    most = {"max_new_tokens": len(made.token_ids)} if made.stopped else {}

    def at(values: dict[str, Any]) -> GenerationSettings:
        known = {name: parse_setting(name, value) for name, value in {**values, **most}.items() if name in SETTINGS}
        settings = GenerationSettings(**known) if most else most_tokens(GenerationSettings(**known), had)
        drawn = settings.samples and settings.seed is None
        return dataclasses.replace(settings, seed=made.turn.seed) if drawn else settings

    values = dict(made.turn.settings)
    start = at(values)
    changes = []
    for place, group in itertools.groupby(made.changes, key=lambda one: one.at):
        values.update({one.name: one.value for one in group})
        changes.append((place, at(values)))
    return start, tuple(changes)


def replay(tree: Tree, model: Model) -> Iterator[Outcome]:
    """Decode all replies of a session again, one after the other; ends early if the user stops one."""
    for found, node in cases(tree):
        problem = model.turn_to(found.made.checkpoint)
        if problem:
            yield Outcome(case=dataclasses.replace(found, problem=problem))
            continue
        case = _asked(found, tree, node, model)
        if case.turn is None:
            yield Outcome(case=case)
            continue
        try:
            decoded = model.decode(case.turn, f"reply {case.number}: ")
        except (UsageError, PromptError) as error:
            yield Outcome(case=dataclasses.replace(case, problem=str(error)))
            continue
        if decoded is None:
            return
        yield compared(case, decoded, model.tokenizer)


def compared(case: Case, decoded: Decoded, tokenizer: ChatTokenizer) -> Outcome:
    """The recorded reply beside the one that was decoded now."""
    before, now = case.made.token_ids, decoded.reply.token_ids
    if before == now:
        return Outcome(case=case)
    at = next((at for at, (a, b) in enumerate(zip(before, now)) if a != b), min(len(before), len(now)))

    def shown(ids: tuple[int, ...]) -> str:
        text = tokenizer.decode(ids[at : at + SHOWN_TOKENS], False) if at < len(ids) else "(its end)"
        return text.replace("\n", "\\n").replace("`", "'")

    return Outcome(case=case, at=at, before=shown(before), now=shown(now), margin=decoded.margin(at))


@dataclass(slots=True)
class Summary:
    """What came out of a replay so far."""

    same: int = 0
    differ: int = 0
    skipped: int = 0

    def add(self, outcome: Outcome) -> None:
        if outcome.case.problem:
            self.skipped += 1
        elif outcome.at is None:
            self.same += 1
        else:
            self.differ += 1

    def __str__(self) -> str:
        replies = self.same + self.differ
        skipped = f"; {self.skipped} could not be replayed" if self.skipped else ""
        if not replies:
            return f"No reply was replayed{skipped}."
        what = counted(replies, "reply", "replies")
        return f"{what} replayed: {self.same} the same, {self.differ} not{skipped}."
