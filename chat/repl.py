"""The conversation: read a line, dispatch it or answer it, repeat. Knows no key and no drawing.

Owns the transcript and the settings. Everything runs on the main thread; what the person does in the middle of a
reply is looked at once per pass, when the engine asks `_poll`.
"""

from __future__ import annotations

import dataclasses
import queue
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from chat import screen
from chat.checkpoints import Adopted, OnBytes, Steps
from chat.commands import dispatch
from chat.console_events import ConsoleEvent, Failed, Interrupt, Leave, Line, Resized, Submitted
from chat.export import Conversation, export, split_target
from chat.facts import reading
from chat.journal import SessionInfo
from chat.session import Session, list_sessions
from chat.tokenizer import ChatTokenizer
from chat.transcript import FittedPrompt, Transcript, fit, prompt_ids
from dist.engine import Engine
from dist.errors import ChatError, RankError, WeightsLost
from dist.protocol import BlockUpdate, Control, PrefillUpdate, Reply, Turn
from dist.settings import MAX_SEED, GenerationSettings

QUIET_S = 5.0
REDRAW_S = 0.1
# The origin of a setting that was changed while the conversation went on.
BY_HAND = "this conversation"


class Console(Protocol):
    """What the conversation needs of a console; console.Console and console_plain.PlainLines are two."""

    events: queue.Queue[ConsoleEvent]

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def commit(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def echo(self, text: str) -> None: ...
    def show_live(self, lines: Sequence[Line] | Callable[[], Sequence[Line]]) -> None: ...
    def clear_live(self) -> None: ...
    def set_status(self, text: str) -> None: ...
    def set_toolbar(self, text: str) -> None: ...
    def set_busy(self, busy: bool) -> None: ...


class Checkpoints(Protocol):
    """What the conversation needs to turn to another checkpoint; checkpoints.Checkpoints is one."""

    def steps(self) -> Steps: ...
    def load(self, argument: str, progress: OnBytes | None = None) -> Adopted: ...


class Repl:
    """One conversation with one model, which may change its weights.

    `origins` says where each setting came from, `facts` what is known of the checkpoint (facts are only shown).
    """

    def __init__(
        self,
        *,
        engine: Engine,
        tokenizer: ChatTokenizer,
        console: Console,
        palette: screen.Palette,
        settings: GenerationSettings,
        origins: Mapping[str, str],
        facts: Mapping[str, Any],
        session: Session,
        sessions_folder: Path,
        transcript: Transcript,
        use_template: bool,
        checkpoints: Checkpoints,
    ) -> None:
        self.settings = settings
        self.origins = dict(origins)
        self.facts = dict(facts)
        self.transcript = transcript
        self.last_settings: GenerationSettings | None = None
        self._engine = engine
        self._tokenizer = tokenizer
        self._console = console
        self._palette = palette
        self._session = session
        self._sessions_folder = sessions_folder
        self._use_template = use_template
        self._checkpoints = checkpoints
        self._last_reply: Reply | None = None
        self._leaving = False
        self._cancel = False
        self._seed = 0
        self._view: screen.ReplyView | None = None
        self._last_event = 0.0
        self._waiting: deque[ConsoleEvent] = deque()

    # The loop.

    def run(self) -> None:
        """Hold the conversation until the person leaves. Raises RankError if the ranks fall apart, WeightsLost."""
        self._show_toolbar()
        while not self._leaving:
            self._console.set_busy(False)
            event = self._waiting.popleft() if self._waiting else self._console.events.get()
            if isinstance(event, Submitted):
                self._take(event.text)
            elif isinstance(event, Leave):
                self._leaving = True
            elif isinstance(event, Failed):
                if not isinstance(event.error, EOFError):
                    raise event.error
                self._leaving = True
        self._session.close()

    def _take(self, text: str) -> None:
        """Run a command or answer a message; an error is shown and the conversation goes on."""
        try:
            self._console.echo(screen.user_echo(text, self._palette, self._console.width))
            if text.startswith("/"):
                dispatch(self, text)
            else:
                self.answer(self.transcript.with_user(text))
        except (RankError, WeightsLost):
            raise
        except ChatError as error:
            self.show_error(error)

    def answer(self, transcript: Transcript) -> None:
        """Answer the last message of `transcript`, which becomes the conversation. Raises ChatError."""
        fitted = fit(
            transcript,
            self._tokenizer,
            self.settings,
            self._engine.max_positions,
            use_template=self._use_template,
        )
        self._note_left_out(fitted)
        self.transcript = transcript
        self._seed = secrets.randbelow(MAX_SEED) if self.settings.seed is None else self.settings.seed
        self._cancel = False
        turn = Turn(
            prompts=(fitted.token_ids,),
            settings=self._sampling_settings(),
            placeholder=self._tokenizer.eos_id,
            stop_ids=self._tokenizer.stop_ids,
        )
        self._journal(lambda: self._session.turn(transcript, turn.settings.as_dict()))
        view = self._view = self._new_view()
        try:
            reply = self._stream(turn, view)
            self._finish(reply, view, fitted)
        except ChatError:
            self.transcript = transcript.mark_unanswered()
            raise
        finally:
            self._view = None
            self._console.clear_live()
            self._console.set_status("")

    def _stream(self, turn: Turn, view: screen.ReplyView) -> Reply:
        """Show the reply while it is made."""
        finished: list[int] = []
        self._last_event = time.monotonic()
        self._console.set_status("thinking")
        for event in self._engine.answer(turn, self._poll):
            self._last_event = time.monotonic()
            if isinstance(event, Reply):
                return event
            if isinstance(event, PrefillUpdate):
                self._console.set_status(f"reading the prompt: {event.done:,} of {event.total:,} tokens")
            elif isinstance(event, BlockUpdate):
                frame = view.update(event)
                self._console.commit(frame.commit)
                self._console.show_live(frame.draw)
                self._console.set_status(f"block {event.index + 1}, pass {event.iteration}")
                if event.done:
                    finished += event.token_ids
                    text = self._tokenizer.decode(self._tokenizer.without_stop(finished))
                    self._journal(partial(self._session.block, event.token_ids, text))
        raise AssertionError("the engine ended a turn without a reply")

    def _finish(self, reply: Reply, view: screen.ReplyView, fitted: FittedPrompt) -> None:
        """Adopt a reply and show its figures."""
        self._console.commit(view.finish(reply))
        self._last_reply = reply
        self.last_settings = reply.settings
        stopped = reply.finish == "cancelled"
        if reply.token_ids or not stopped:
            text = self._tokenizer.decode(self._tokenizer.without_stop(reply.token_ids))
            left_out = len(fitted.left_out)
            self.transcript = self.transcript.with_reply(text, reply.token_ids, stopped=stopped, left_out=left_out)
            self._journal(lambda: self._session.reply(self.transcript.messages[-1]))
        else:
            self.transcript = self.transcript.mark_unanswered()
            self.note("Stopped before the first block was finished. /retry answers the message again.")
            return
        used = reply.prompt_len + len(reply.token_ids)
        self._console.note(screen.stats_line(reply, used, fitted.limit, self._palette, self._console.width))

    def _note_left_out(self, fitted: FittedPrompt) -> None:
        if fitted.left_out:
            openings = ", ".join(f'"{group[0].content[:30]}"' for group in fitted.left_out[:3])
            more = ", ..." if len(fitted.left_out) > 3 else ""
            self.note(
                f"The conversation no longer fits {fitted.limit:,} tokens: the oldest {len(fitted.left_out)} of "
                f"{len(self.transcript.exchanges)} exchanges are left out of the prompt ({openings}{more})."
            )

    # In the middle of a reply.

    def _poll(self) -> Control:
        """What the person wants by now; asked by the engine once per pass."""
        while True:
            try:
                event = self._console.events.get_nowait()
            except queue.Empty:
                break
            self._during_reply(event)
        return Control(settings=self._sampling_settings(), cancel=self._cancel)

    def _during_reply(self, event: ConsoleEvent) -> None:
        if isinstance(event, Leave) or (isinstance(event, Submitted) and not event.live):
            # Piped input runs ahead of the replies.
            self._waiting.append(event)
        elif isinstance(event, Submitted):
            try:
                dispatch(self, event.text, live=True)
            except ChatError as error:
                self.show_error(error)
        elif isinstance(event, Resized):
            if self._view is not None:
                self._view.resize(event.columns, event.rows)
        else:
            # Interrupt, Abort, or a console that is gone: in each case the reply has to stop.
            self._cancel = True
            self._leaving = self._leaving or not isinstance(event, Interrupt)

    def watch_quiet(self) -> None:
        """Say so if no pass has ended for some seconds. May be called from any thread."""
        quiet = time.monotonic() - self._last_event
        if self._view is not None and quiet > QUIET_S:
            self._console.set_status(f"no answer from the model for {quiet:.0f} s")

    def _sampling_settings(self) -> GenerationSettings:
        """The settings with the seed that was drawn for this turn, if none is set."""
        if self.settings.samples and self.settings.seed is None:
            return dataclasses.replace(self.settings, seed=self._seed)
        return self.settings

    # What commands ask for.

    def change_setting(self, name: str, value: str) -> None:
        """Read and adopt a setting; raises UsageError and changes nothing if it cannot be."""
        self.settings = self.settings.with_value(name, value)
        self.origins[name] = BY_HAND
        self._show_toolbar()
        now = getattr(self.settings, name)
        when = " from the next block on" if self._view is not None else ""
        self.note(f"{name} is {'none' if now is None else now}{when}.")

    def adopt(self, transcript: Transcript) -> None:
        """Put another transcript in the place of this one."""
        self.transcript = transcript
        self._journal(lambda: self._session.replace(transcript))

    def steps(self) -> Steps:
        """The steps of the run that the checkpoint belongs to; raises UsageError if it belongs to none."""
        return self._checkpoints.steps()

    def load(self, argument: str) -> None:
        """Go on with other weights. Raises ChatError with nothing changed, or WeightsLost."""
        self._console.set_status(f"checking {argument}")
        try:
            adopted = self._checkpoints.load(argument, self._loading_status())
        except WeightsLost as error:
            self._session.close()
            kept = f"What was said is kept: --resume {self._session.name} goes on with it."
            raise WeightsLost(error.what, error.why, kept if self._session.path.exists() else "") from error
        finally:
            self._console.set_status("")
        self._tokenizer, self._use_template = adopted.tokenizer, adopted.use_template
        by_hand = [name for name, origin in self.origins.items() if origin == BY_HAND]
        kept_values = {name: getattr(self.settings, name) for name in by_hand}
        self.settings = dataclasses.replace(adopted.settings, **kept_values)
        self.origins = {**adopted.origins, **dict.fromkeys(by_hand, BY_HAND)}
        self.facts = dict(adopted.facts)
        self._journal(lambda: self._session.set_facts(self.facts))
        self._show_toolbar()
        who = "This model" if self.facts["step"] is None else f"Step {self.facts['step']}"
        self.note(
            f"{who} answers from here on, ready in {self.facts['ready_seconds']} s: {self.facts['checkpoint']}"
        )
        if adopted.slow_reason:
            self.note(f"Decoding by the plain rule, which is slow: {adopted.slow_reason}.")

    def _loading_status(self) -> OnBytes:
        """Shows how far reading has come, a few times a second."""
        began = shown = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= REDRAW_S or done == total:
                shown = now
                self._console.set_status(reading("loading", done, total, now - began))

        return show

    def leave(self) -> None:
        """End the conversation after the present command."""
        self._leaving = True

    def export(self, argument: str) -> Path:
        """Write the conversation to a file; raises ChatError."""
        target, force = split_target(argument)
        conversation = Conversation(transcript=self.transcript, settings=self.settings, facts=self.facts)
        return export(target, conversation, force=force)

    def rename_session(self, name: str) -> None:
        """Name the journal; raises ChatError."""
        self._session.rename(name)

    def resume(self, name: str) -> None:
        """Go on with another session; raises UsageError if there is none."""
        others = [info.name for info in self.sessions() if info.name != self._session.name]
        session, restored = Session.resume(self._sessions_folder, name or (others[0] if others else ""))
        self._session.close()
        self._session = session
        self._journal(lambda: session.set_facts(self.facts))
        self.transcript = restored.transcript
        self.show_conversation()

    def sessions(self) -> Iterable[SessionInfo]:
        """The sessions on disk, latest first."""
        return list_sessions(self._sessions_folder)

    def show_conversation(self) -> None:
        """Say which session goes on, and with what."""
        last = self.transcript.messages[-1:]
        self.note(f"Going on with session {self._session.name}: {len(self.transcript.exchanges)} exchanges.")
        for message in last:
            self._console.commit(screen.render_markdown(message.content, self._console.width, self._palette))

    def show_context(self) -> None:
        """Say how much of the limit the conversation takes."""
        limit = min(self.settings.max_length, self._engine.max_positions or self.settings.max_length)
        exchanges = len(self.transcript.exchanges)
        used = len(self._context_ids())
        self.note(
            f"{used:,} of {limit:,} tokens in {exchanges} exchanges; "
            f"{self._engine.cached_tokens:,} are kept from the last turn."
        )

    def _context_ids(self) -> Sequence[int]:
        messages = self.transcript.for_model().messages
        return prompt_ids(self.transcript, self._tokenizer, self._use_template) if messages else ()

    def show_stats(self) -> None:
        """Every figure of the last reply."""
        if self._last_reply is None:
            self.note("No reply has been made yet.")
            return
        stats = self._last_reply.stats.as_dict()
        self.show_table([(name, _listed(value)) for name, value in stats.items()])

    # Shown to the person.

    def note(self, text: str) -> None:
        self._console.note(screen.notice(text, self._palette, self._console.width))

    def show_table(self, rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> None:
        self._console.note(screen.table(rows, self._console.width, self._palette, head=head))

    def show_error(self, error: ChatError) -> None:
        self._console.note(screen.error_block(error, self._palette, self._console.width))

    def _show_toolbar(self) -> None:
        s = self.settings
        sampling = f"temperature {s.temperature:g}" if s.samples else "greedy"
        step = "" if self.facts.get("step") is None else f"  step {self.facts['step']}"
        self._console.set_toolbar(f"N {s.add_eos_length}  R {s.refine_iter}  {sampling}{step}")

    def _new_view(self) -> screen.ReplyView:
        return screen.ReplyView(
            self._tokenizer.decode, self._console.width, self._console.height, self._palette, markdown=True
        )

    def _journal(self, write: Callable[[], None]) -> None:
        """Write to the journal; a disk that refuses is said once and does not end the conversation."""
        try:
            write()
        except RankError:
            raise
        except ChatError as error:
            self.show_error(error)


def _listed(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_listed(one) for one in value)
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
