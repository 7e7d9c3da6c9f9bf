"""A conversation on a real engine and tokenizer, held by a script in the place of the terminal."""

from __future__ import annotations

from known_facts import known_facts
from scripted_console import ScriptedConsole

from chat.commands.table import dispatch
from chat.conversation.page import Page
from chat.conversation.repl import Repl
from chat.conversation.state import Talk
from chat.screen.draw import Palette
from chat.sessions.folder import Sessions
from chat.sessions.journal import read_journal
from chat.sessions.session import Session
from dist.errors import CheckpointError, UsageError
from dist.settings import GenerationSettings

START = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=24)


class OneCheckpoint:
    """No other weights to turn to; tests/model/test_reload.py has some."""

    def steps(self):
        raise UsageError("The checkpoint has no steps beside it.")

    def check(self, path):
        raise CheckpointError(f"There is no {path}.")

    def load(self, argument, progress=None, verifying=None):
        raise CheckpointError(f"There is no {argument}.")


def holder(engine, tokenizer, tmp_path, start):
    """`run(line, ...)`: what the script says is done, to the end; gives the repl and the console."""

    def run(*script, settings=start, origins=None, facts=None, session=None):
        console = ScriptedConsole(*script)
        page = Page(console, Palette(ink="none"))
        talk = Talk(
            page=page,
            tokenizer=tokenizer,
            settings=settings,
            origins={"refine_iter": "checkpoint"} if origins is None else origins,
            facts=facts or known_facts(),
            session=session or Session(tmp_path / "sessions", system="Be brief."),
            sessions=Sessions(tmp_path / "sessions"),
            use_template=True,
            checkpoints=OneCheckpoint(),
            positions=engine.max_positions,
        )
        repl = Repl(engine=engine, page=page, talk=talk, dispatch=dispatch)
        repl.run()
        return repl, console

    return run


def conversation(tmp_path, repl):
    """What is held, what a resumed session would hold, and what an export holds: all the same."""
    (path,) = (tmp_path / "sessions").iterdir()
    assert read_journal(path.read_bytes()).tree.transcript() == repl.talk.transcript
    return [message.content for message in repl.talk.transcript.messages]
