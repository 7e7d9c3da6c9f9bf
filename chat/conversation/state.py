"""The conversation as it stands: transcript, settings, checkpoint, journal. Answers nothing and reads no key.

What cannot be raises and changes nothing; what has changed is journaled.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from chat.conversation.page import Page
from chat.loading.checkpoints import Adopted, OnBytes, Steps
from chat.loading.facts import reading
from chat.sessions.export import Conversation, export, split_target
from chat.sessions.journal import SessionInfo
from chat.sessions.session import Session, list_sessions
from chat.text.prompt import ROOM_FOR_REPLY, FittedPrompt, fit, prompt_ids
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import Transcript
from dist.errors import ChatError, PromptError, RankError, UsageError, WeightsLost
from dist.protocol import Reply
from dist.settings import GenerationSettings

REDRAW_S = 0.1
# The origin of a setting that was changed while the conversation went on.
BY_HAND = "this conversation"
# What happens when a conversation no longer fits: its oldest exchanges are left out, or the message is refused.
Overflow = Literal["drop", "refuse"]


class Checkpoints(Protocol):
    """What the conversation needs to turn to another checkpoint; checkpoints.Checkpoints is one."""

    def steps(self) -> Steps: ...
    def load(self, argument: str, progress: OnBytes | None = None, verifying: OnBytes | None = None) -> Adopted: ...


class Talk:
    """One conversation with one model, which may change its weights.

    `origins` says where each setting came from, `facts` what is known of the checkpoint (facts are only shown).
    `positions` is how many the model has, None for no limit. `overflow` says what happens when the prompt is full.
    """

    def __init__(
        self,
        *,
        page: Page,
        tokenizer: ChatTokenizer,
        settings: GenerationSettings,
        origins: Mapping[str, str],
        facts: Mapping[str, Any],
        session: Session,
        sessions_folder: Path,
        transcript: Transcript,
        use_template: bool,
        checkpoints: Checkpoints,
        positions: int | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.origins = dict(origins)
        self.facts = dict(facts)
        self.transcript = transcript
        self.overflow: Overflow = "drop"
        self.last_reply: Reply | None = None
        self._page = page
        self._session = session
        self._sessions_folder = sessions_folder
        self._use_template = use_template
        self._checkpoints = checkpoints
        self._positions = positions
        self.show_toolbar()

    # The next prompt.

    def fitted(self, transcript: Transcript, settings: GenerationSettings | None = None) -> FittedPrompt:
        """The prompt that asks for a reply to `transcript`; raises PromptError if there can be none."""
        fitted = fit(
            transcript,
            self.tokenizer,
            settings or self.settings,
            self._positions,
            use_template=self._use_template,
        )
        if fitted.left_out and self.overflow == "refuse":
            there = len(transcript.for_model().exchanges)
            raise PromptError(
                f"The conversation no longer fits {fitted.limit:,} tokens.",
                f"{len(fitted.left_out)} of its {there} exchanges would have to be left out.",
                "/set overflow drop leaves them out; /clear starts over.",
            )
        return fitted

    def check_room(self, what: str, text: str) -> int:
        """How many tokens `text` has; raises PromptError if no message can hold it."""
        limit = min(self.settings.max_length, self._positions or self.settings.max_length)
        room = min(self.settings.max_new_tokens, ROOM_FOR_REPLY)
        size = len(self.tokenizer.encode(text))
        if size + room > limit:
            raise PromptError(
                f"{what} is too large for the context.",
                f"It has {size:,} tokens; with room for {room} tokens of reply the limit is {limit:,}.",
            )
        return size

    def context(self) -> tuple[int, int]:
        """How many tokens the conversation holds, of how many."""
        limit = min(self.settings.max_length, self._positions or self.settings.max_length)
        there = self.transcript.for_model().messages
        return len(prompt_ids(self.transcript, self.tokenizer, self._use_template)) if there else 0, limit

    def reply_text(self, token_ids: Sequence[int]) -> str:
        """The text of a reply or of a part of one, without the stop token at its end."""
        return self.tokenizer.decode(self.tokenizer.without_stop(token_ids))

    # Settings and messages.

    def change_setting(self, name: str, value: str) -> None:
        """Read and adopt a setting; raises UsageError."""
        self.settings = self.settings.with_value(name, value)
        self.origins[name] = BY_HAND
        self.show_toolbar()

    def adopt(self, transcript: Transcript) -> None:
        """Put another transcript in the place of this one."""
        self.transcript = transcript
        self.journal(lambda session: session.replace(transcript))

    def show_toolbar(self) -> None:
        s = self.settings
        sampling = f"temperature {s.temperature:g}" if s.samples else "greedy"
        step = "" if self.facts.get("step") is None else f"  step {self.facts['step']}"
        self._page.console.set_toolbar(f"N {s.add_eos_length}  R {s.refine_iter}  {sampling}{step}")

    # The model.

    def steps(self) -> Steps:
        """The steps of the run that the checkpoint belongs to; raises UsageError if it belongs to none."""
        return self._checkpoints.steps()

    def load(self, argument: str) -> None:
        """Go on with other weights. Raises ChatError with nothing changed, or WeightsLost."""
        self._page.status(f"checking {argument}")
        try:
            adopted = self._checkpoints.load(argument, self._reading("loading"), self._reading("verifying"))
        except WeightsLost as error:
            self._session.close()
            kept = f"What was said is kept: --resume {self._session.name} goes on with it."
            raise WeightsLost(error.what, error.why, kept if self._session.path.exists() else "") from error
        finally:
            self._page.status("")
        self.tokenizer, self._use_template = adopted.tokenizer, adopted.use_template
        by_hand = [name for name, origin in self.origins.items() if origin == BY_HAND]
        kept_values = {name: getattr(self.settings, name) for name in by_hand}
        self.settings = dataclasses.replace(adopted.settings, **kept_values)
        self.origins = {**adopted.origins, **dict.fromkeys(by_hand, BY_HAND)}
        self.facts = dict(adopted.facts)
        self.journal(lambda session: session.set_facts(self.facts))
        self.show_toolbar()
        who = "This model" if self.facts["step"] is None else f"Step {self.facts['step']}"
        self._page.note(
            f"{who} answers from here on, ready in {self.facts['ready_seconds']} s: {self.facts['checkpoint']}"
        )
        if adopted.remark:
            self._page.note(adopted.remark)

    def _reading(self, what: str) -> OnBytes:
        """Shows how far reading has come, a few times a second."""
        began = shown = 0.0

        def show(done: int, total: int) -> None:
            nonlocal began, shown
            now = time.monotonic()
            if not began:
                began = shown = now
            if now - shown >= REDRAW_S or done == total:
                shown = now
                self._page.status(reading(what, done, total, now - began))

        return show

    # Files.

    def export(self, argument: str) -> Path:
        """Write the conversation to a file; raises ChatError."""
        target, force = split_target(argument)
        conversation = Conversation(transcript=self.transcript, settings=self.settings, facts=self.facts)
        return export(target, conversation, force=force)

    @property
    def session_name(self) -> str:
        """What the journal is called."""
        return self._session.name

    def rename_session(self, name: str) -> None:
        """Name the journal; raises ChatError."""
        self._session.rename(name)

    def resume(self, name: str) -> None:
        """Go on with another session, the latest if `name` is empty; raises ChatError if there is none."""
        if name == self._session.name:
            raise UsageError(f"The session {name} is the present one.", mend="/sessions lists the others.")
        others = self.other_sessions()
        if not name and not others:
            raise UsageError("There is no other session to go on with.")
        session, restored = Session.resume(self._sessions_folder, name or others[0].name)
        self._session.close()
        self._session = session
        self.journal(lambda session: session.set_facts(self.facts))
        self.transcript = restored.transcript
        self.show_resumed()

    def show_resumed(self) -> None:
        """Say which session goes on, and with what."""
        self._page.note(f"Going on with session {self.session_name}: {len(self.transcript.exchanges)} exchanges.")
        for message in self.transcript.messages[-1:]:
            self._page.markdown(message.content)

    def sessions(self) -> Iterable[SessionInfo]:
        """The sessions on disk, latest first."""
        return list_sessions(self._sessions_folder)

    def other_sessions(self) -> Sequence[SessionInfo]:
        """The sessions on disk but this one, latest first."""
        return [info for info in self.sessions() if info.name != self._session.name]

    def journal(self, write: Callable[[Session], None]) -> None:
        """Write to the journal; a disk that refuses is said once and does not end the conversation."""
        try:
            write(self._session)
        except RankError:
            raise
        except ChatError as error:
            self._page.error(error)

    def close(self) -> None:
        """Let go of the journal."""
        self._session.close()
