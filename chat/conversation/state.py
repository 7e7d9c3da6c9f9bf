"""The conversation as it stands: what was said, settings, checkpoint, journal. Answers nothing and reads no key.

What cannot be raises and changes nothing; what has changed is journaled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from chat.conversation.kept import Kept
from chat.conversation.page import Page
from chat.conversation.provenance import checkpoint_record
from chat.conversation.toolbar import Toolbar, Used
from chat.loading.checkpoints import Adopted, Checkpoints
from chat.loading.facts import CheckpointFacts
from chat.loading.progress import paced
from chat.loading.trial import Trial, undecided
from chat.sessions.folder import Sessions
from chat.sessions.nodes import Made, Node
from chat.sessions.records import CheckpointRecord
from chat.sessions.session import Asked, Session
from chat.text.context import Context, context
from chat.text.prompt import ROOM_FOR_REPLY, FittedPrompt, fit, prompt_digest
from chat.text.stops import reply_text
from chat.text.template import ChatTemplate
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import SYSTEM, Transcript
from dist.errors import PromptError, UsageError, WeightsLost
from dist.protocol import Reply
from dist.settings import DEFAULT, SETTINGS, GenerationSettings

# The origins of a setting that was changed while the conversation went on, and of one that was measured.
BY_HAND = "this conversation"
MEASURED = "measured on a first block"
# What happens when a conversation no longer fits: its oldest exchanges are left out, or the message is refused.
Overflow = Literal["drop", "refuse"]


class Talk(Kept):
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
        facts: CheckpointFacts,
        session: Session,
        sessions: Sessions,
        use_template: bool,
        checkpoints: Checkpoints,
        positions: int | None,
        how_to_continue: Callable[[str], str] = "--resume {}".format,
        announce: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(page, session, how_to_continue, announce)
        self.tokenizer = tokenizer
        self.settings = settings
        self.origins = dict(origins)
        self.facts = facts
        self.sessions = sessions
        self.overflow: Overflow = "drop"
        self.prefill = ""  # what the next reply begins with, in the place of the setting
        self.last_reply: Reply | None = None
        self.use_template = use_template
        self.checkpoints = checkpoints
        self.positions = positions
        self._toolbar = Toolbar(page.console.set_toolbar)
        if not session.tree.checkpoints:
            self.journal(lambda session: session.checkpoint(self.checkpoint_record()))
        self.show_toolbar()

    # The next prompt.

    def fitted(
        self,
        transcript: Transcript,
        settings: GenerationSettings | None = None,
        goes_on: Sequence[int] | None = None,
    ) -> FittedPrompt:
        """The prompt that asks for a reply to `transcript`; raises PromptError if there can be none.

        The reply begins with the tokens in `goes_on`, by default with the prefill.
        """
        fitted = self._fit(transcript, settings, goes_on)
        if fitted.left_out and self.overflow == "refuse":
            there = len(transcript.for_model().exchanges)
            raise PromptError(
                f"The conversation no longer fits {fitted.limit:,} tokens.",
                f"{len(fitted.left_out)} of its {there} exchanges would have to be left out.",
                "/set overflow drop leaves them out; /clear starts over.",
            )
        return fitted

    def asked(self, fitted: FittedPrompt, seed: int) -> Asked:
        """What the journal is to say of a reply to this prompt."""
        return Asked(
            settings=self.settings.as_dict(),
            seed=seed,
            left_out=len(fitted.left_out),
            prompt_len=len(fitted.token_ids),
            prompt=prompt_digest(fitted.token_ids),
            begun=len(fitted.begun),
        )

    def check_room(self, what: str, text: str) -> int:
        """How many tokens `text` has; raises PromptError if no message can hold it."""
        limit = min(self.settings.max_length, self.positions or self.settings.max_length)
        room = min(self.settings.max_new_tokens, ROOM_FOR_REPLY)
        size = len(self.tokenizer.encode(text))
        if size + room > limit:
            raise PromptError(
                f"{what} is too large for the context.",
                f"It has {size:,} tokens; with room for {room} tokens of reply the limit is {limit:,}.",
            )
        return size

    @property
    def system_fate(self) -> str | None:
        """Why a system prompt does not reach the model, and what to do; None if it does."""
        template = self.template
        if template is None or template.behaviour.system == "used":
            return None
        does = "ignores it" if template.behaviour.system == "ignored" else "refuses it, and so every message"
        return f"the chat template {does}. /system - removes it."

    def context(self) -> Context | None:
        """What fills the context now, as the figures of the last reply counted it; None if nothing does."""
        asked = self.transcript.without_reply()
        if asked.last_question is None:
            return None
        return context(self.transcript, self._fit(asked), self.tokenizer)

    def next_left_out(self) -> int:
        """How many exchanges a short next message would leave out of its prompt."""
        return len(self._fit(self.transcript.with_user("?")).left_out)

    def _fit(
        self,
        transcript: Transcript,
        settings: GenerationSettings | None = None,
        goes_on: Sequence[int] | None = None,
    ) -> FittedPrompt:
        return fit(
            transcript,
            self.tokenizer,
            settings or self.settings,
            self.positions,
            use_template=self.use_template,
            max_length_from=self.origins.get("max_length", ""),
            goes_on=goes_on,
        )

    def reply_text(self, token_ids: Sequence[int], stops: Sequence[str] = ()) -> str:
        """The text of a reply or of a part of one, without what ended it."""
        return reply_text(self.tokenizer, token_ids, stops)

    def reply_to(self, question: Node) -> Made | None:
        """How the reply to a message of the present conversation was made, if there is one."""
        return next((node.made for node in self.tree.path() if node.parent == question.id and node.made), None)

    @property
    def last_reply_node(self) -> Node | None:
        """The reply that the conversation ends with, if it does."""
        said = next((node for node in reversed(self.tree.path()) if node.role != SYSTEM), None)
        return said if said is not None and said.made is not None else None

    def same_tokenizer(self, made: Made) -> bool:
        """Whether an earlier reply's token ids mean what they mean now."""
        return made.checkpoint is not None and made.checkpoint.tokenizer == self.tree.checkpoints[-1].tokenizer

    def loaded_since(self, made: Made) -> bool:
        """Whether a checkpoint was loaded after a reply was made, be it the same one."""
        return made.checkpoint is not None and made.checkpoint != self.tree.checkpoints[-1]

    @property
    def rounds(self) -> bool:
        """Whether the model computes in 16 bits, where rounding can decide between two tokens."""
        return self.tree.checkpoints[-1].dtype in ("bfloat16", "float16")

    # Settings and messages.

    def change_setting(self, name: str, value: str) -> None:
        """Read and adopt a setting; raises UsageError."""
        self._set(name, value, BY_HAND)

    def adopt_settings(self, values: Mapping[str, Any], origin: str) -> None:
        """Go on with these settings, which have been checked."""
        self.settings = dataclasses.replace(self.settings, **values)
        self.origins.update(dict.fromkeys(values, origin))
        self.show_toolbar()

    def reset_setting(self, name: str) -> None:
        """Give a setting the program's own value again; raises UsageError."""
        self._set(name, SETTINGS[name].default, DEFAULT)

    def _set(self, name: str, value: object, origin: str) -> None:
        settings = self.settings.with_value(name, value)
        if settings.template_args != self.settings.template_args:
            self._check_template_args(settings.template_arguments)
        self.settings = settings
        self.origins[name] = origin
        self.show_toolbar()

    @property
    def template(self) -> ChatTemplate | None:
        """What messages are put through, if they are."""
        return self.tokenizer.template if self.use_template else None

    def _check_template_args(self, given: Mapping[str, Any]) -> None:
        if self.template is not None:
            self.template.check(given)
        elif given:
            raise UsageError("There is no chat template to give arguments to.", "Prompts are sent as they are.")

    def show_newer(self, step: int | None) -> None:
        """The toolbar names a newer step of the run, or none. May be called from any thread."""
        self._toolbar.newer = step
        self.show_toolbar()

    def show_toolbar(self) -> None:
        """May be called from any thread; the last call shows what holds then."""
        self._toolbar.show(self.session, lambda: (self.settings, self.facts.step))

    def head_moved(self) -> None:
        """What the context holds is not known any more where the conversation is now."""
        if self._toolbar.forget_used(self.tree.head):
            self.show_toolbar()

    def show_used(self, used: int, limit: int) -> None:
        """How much of the context the conversation takes, after a reply."""
        self._toolbar.used = Used(tokens=used, limit=limit, head=self.tree.head)
        self.show_toolbar()

    @property
    def undecided(self) -> bool:
        """Whether nothing says how the model is to be refined, so that its first block has to."""
        return bool(undecided(self.origins))

    def decide(self, trial: Trial, auto_length: int) -> str:
        """Adopt the settings that a trial speaks for; gives them and why, in a line."""
        names = undecided(self.origins)
        self.settings, why = trial.chosen(self.settings, names, auto_length)
        if trial.tells:
            self.origins.update(dict.fromkeys(names, MEASURED))
        self.show_toolbar()
        return why

    # The model.

    def load(self, argument: str) -> None:
        """Go on with other weights. Raises ChatError with nothing changed, or WeightsLost."""
        try:
            adopted = self.fetch(argument)
        except WeightsLost as error:
            raise self.lost(error) from error
        self.adopt(adopted)
        self._page.note(
            f"{self.facts.who} answers from here on, ready in {self.facts.ready_seconds} s: {self.facts.checkpoint}"
        )
        for line in (*adopted.notices, *filter(None, (adopted.slow_notice,))):
            self._page.note(line)
        self._page.ring(self.facts.ready_seconds, "The checkpoint is loaded.")

    def fetch(self, argument: str, doing: str = "") -> Adopted:
        """Have other weights answer; the conversation does not know of it yet. Raises ChatError, or WeightsLost."""
        show = self._page.status
        show(f"{doing}checking {argument}")
        try:
            return self.checkpoints.load(argument, paced(f"{doing}loading", show), paced(f"{doing}verifying", show))
        finally:
            show("")

    def adopt(self, adopted: Adopted) -> None:
        """Go on with the weights that answer now; what was set by hand stays."""
        self.tokenizer, self.use_template = adopted.tokenizer, adopted.use_template
        by_hand = [name for name, origin in self.origins.items() if origin == BY_HAND]
        kept_values = {name: getattr(self.settings, name) for name in by_hand}
        self.settings = dataclasses.replace(adopted.settings, **kept_values)
        self.origins = {**adopted.origins, **dict.fromkeys(by_hand, BY_HAND)}
        self.facts = adopted.facts
        self.journal(lambda session: session.checkpoint(self.checkpoint_record()))
        self.show_toolbar()

    def lost(self, error: WeightsLost) -> WeightsLost:
        """No weights are left: the session ends, and how it is continued belongs to the error."""
        self.session.close()
        return WeightsLost(error.what, error.why, self.farewell)

    def checkpoint_record(self) -> CheckpointRecord:
        """What answers now, as the journal has it."""
        return checkpoint_record(self.facts, self.tokenizer, use_template=self.use_template)
