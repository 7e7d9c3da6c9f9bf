"""The replies that `/compare` makes: under values of a setting, or by several checkpoints in turn. Makes none.

All answer the last message of the conversation, which stays as it is.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chat.conversation.answer import with_seed
from chat.conversation.answering import left_out_note
from chat.conversation.divergence import Margins
from chat.conversation.page import Page
from chat.conversation.state import Talk
from chat.conversation.visiting import Guest, Visit
from chat.conversation.work import Work
from chat.loading.named import BASE_WORD
from chat.sessions.records import CheckpointRecord
from chat.text.agreement import GREEDY
from chat.text.prompt import FittedPrompt, fit, prefill_ids
from dist.errors import ChatError, RankError, UsageError, WeightsLost
from dist.protocol import Reply
from dist.settings import MAX_SEED, GenerationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A reply to be made: its number and name, under which settings, to which prompt.

    by       the checkpoint that makes it; None: the conversation's own
    earlier  replies to draw drafts from, at most one
    trace    whether to record how near each choice was
    """

    number: int
    label: str
    settings: GenerationSettings
    prompt: FittedPrompt
    placeholder: int
    stop_ids: tuple[int, ...]
    by: CheckpointRecord | None = None
    earlier: tuple[tuple[int, ...], ...] = ()
    trace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A reply, what was asked, and how near each of its choices was where that was looked at."""

    reply: Reply
    asked: Candidate
    margins: Margins


def under(talk: Talk, page: Page, name: str, values: Sequence[str]) -> Iterator[Candidate]:
    """Replies under values of a setting, all checked; the greedy one has room for the longest of the others.

    A notice says what their prompt leaves out.
    """
    base, drawn = talk.settings, secrets.randbelow(MAX_SEED)
    question = talk.transcript.without_reply()
    settings = {value: with_seed(base.with_value(name, value), drawn) for value in values}
    greedy = dataclasses.replace(
        base,
        temperature=0.0,
        add_eos_length=0,
        refine_iter=1,
        max_new_tokens=max(one.max_new_tokens for one in settings.values()),
        max_length=max(one.max_length for one in settings.values()),
    )
    labelled = {**{f"{name} {value}": one for value, one in settings.items()}, GREEDY: greedy}
    # One prompt for all: what has room where there is least.
    prompts = (talk.fitted(question, one) for one in labelled.values())
    fitted = min(prompts, key=lambda prompt: len(prompt.token_ids))
    if fitted.left_out:
        page.note(left_out_note(fitted, question))
    tokenizer = talk.tokenizer
    for number, (label, one) in enumerate(labelled.items(), 1):
        yield Candidate(
            number=number,
            label=label,
            settings=one,
            prompt=dataclasses.replace(fitted, begun=prefill_ids(one, tokenizer)),
            placeholder=tokenizer.eos_id,
            stop_ids=tokenizer.stop_ids,
        )


def folders_of(talk: Talk, words: Sequence[str]) -> dict[Path, str]:
    """Where the checkpoints' weights are, with the words that named them; each once. Raises ChatError."""
    checkpoints = talk.checkpoints
    folders: dict[Path, str] = {}
    for word in words:
        folders.setdefault(checkpoints.weights_folder(word), word)
    home = Path(talk.facts.checkpoint).absolute()
    if len(folders) == 1 and home not in folders:
        folders = {home: "", **folders}
    if len(folders) < 2:
        raise UsageError(
            "/compare step needs at least two steps, or one other than the loaded one.",
            "",
            "For example: /compare step 100 200 latest",
        )
    return folders


def by_checkpoints(
    talk: Talk, work: Work, page: Page, visit: Visit, folders: Mapping[Path, str], made: Mapping[str, Made]
) -> Iterator[Candidate]:
    """Replies of other checkpoints, each loaded when its turn comes; the last one made is the next one's draft."""
    settings = with_seed(_settings_for_steps(talk, work, page), secrets.randbelow(MAX_SEED))
    before = talk.reply_to(talk.tree.questions()[0])
    first = before.token_ids if before is not None and talk.same_tokenizer(before) else ()
    names: list[str] = []
    for number, (folder, word) in enumerate(folders.items(), 1):
        if work.heard_stop():
            return
        try:
            guest = visit.go_to(folder, f"{number} of {len(folders)}: ")
            prompt = _prompt_of(talk, guest, settings)
        except RankError:
            raise
        except ChatError as error:
            page.error(error)
            if isinstance(error, WeightsLost):
                return
            continue
        if prompt.left_out and number == 1:
            page.note(left_out_note(prompt, talk.transcript.without_reply()))
        if work.heard_stop():
            return
        record = guest.record
        name = BASE_WORD if word == BASE_WORD else record.path if record.step is None else f"step {record.step}"
        names.append(name if name not in names else record.path)
        draft = next((one.reply.token_ids for one in reversed(list(made.values()))), first)
        yield Candidate(
            number=number,
            label=names[-1],
            settings=settings,
            prompt=prompt,
            placeholder=guest.tokenizer.eos_id,
            stop_ids=guest.tokenizer.stop_ids,
            by=record,
            earlier=(draft,) if draft else (),
            trace=talk.rounds and settings.refine_iter == "auto",
        )


def _settings_for_steps(talk: Talk, work: Work, page: Page) -> GenerationSettings:
    """Those of the conversation; `auto` where nothing has decided yet how to refine."""
    if not talk.undecided:
        return talk.settings
    page.note("refine_iter is not set anywhere, so all answer at auto.")
    return dataclasses.replace(talk.settings, refine_iter="auto", add_eos_length=work.auto_length)


def _prompt_of(talk: Talk, guest: Guest, settings: GenerationSettings) -> FittedPrompt:
    """The last message as that checkpoint is asked it."""
    return fit(
        talk.transcript.without_reply(),
        guest.tokenizer,
        settings,
        talk.positions,
        use_template=guest.use_template,
        refuse=talk.overflow == "refuse",
    )
