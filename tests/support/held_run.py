"""A conversation with a checkpoint of a run, on one rank, held by a script; what a fresh start would answer."""

from __future__ import annotations

from pathlib import Path

import torch
from plain_rule import plain_rule
from scripted_console import ScriptedConsole

from chat.commands.table import dispatch
from chat.conversation.page import Page
from chat.conversation.repl import Repl
from chat.conversation.state import Talk
from chat.loading.checkpoints import Checkpoints, run_folder
from chat.loading.facts import checkpoint_facts
from chat.loading.opening import load
from chat.screen.draw import Palette
from chat.sessions.folder import Sessions
from chat.sessions.session import Session
from chat.start.config_file import ConfigFile
from chat.start.options import LaunchOptions, resolve_settings
from chat.text.prompt import prompt_ids
from chat.text.tokenizer import load_tokenizer
from chat.text.transcript import Transcript
from dist.checkpoint.digest import digests
from dist.checkpoint.open import open_checkpoint
from dist.errors import WeightsLost
from dist.group.group import SoloGroup
from dist.model.load import load_model

SHORT = {"add_eos_length": 3, "refine_iter": 2, "max_new_tokens": 12}


def run_holder(tmp_path: Path):
    """`hold(folder, line, ...)`: a conversation with a checkpoint; a function among the lines is called,
    and `prepare` with repl and engine before the first."""

    def hold(folder, *script, options: LaunchOptions | None = None, prepare=lambda repl, engine: None):
        options = options or LaunchOptions(checkpoint_dir=str(folder), settings=SHORT, dtype="float32")
        checkpoint = open_checkpoint(folder)
        config = ConfigFile(path=tmp_path / "none.toml")
        settings, origins = resolve_settings(options, config, checkpoint.generation_config)
        tokenizer = load_tokenizer(checkpoint.tokenizer_dir, checkpoint.generation_config)
        engine, reloader = load(options, SoloGroup(torch.device("cpu")), checkpoint, "auto")
        facts = checkpoint_facts(reloader.loaded, tokenizer, True, 1, 1.0, digests=digests(checkpoint))
        console = ScriptedConsole(*script)
        page = Page(console, Palette(ink="none"))
        talk = Talk(
            page=page,
            tokenizer=tokenizer,
            settings=settings,
            origins=origins,
            facts=facts,
            session=Session(tmp_path / "sessions"),
            sessions=Sessions(tmp_path / "sessions"),
            use_template=True,
            checkpoints=Checkpoints(
                engine=engine,
                reloader=reloader,
                tokenizer=tokenizer,
                options=options,
                config=config,
                ranks=1,
                run=run_folder(checkpoint.steps),
            ),
            positions=engine.max_positions,
        )
        repl = Repl(engine=engine, page=page, talk=talk, dispatch=dispatch)
        console.error = None
        prepare(repl, engine)
        try:
            repl.run()
        except WeightsLost as error:
            console.error = error
        return repl, console

    return hold


def reply_by_plain_rule(step: Path, transcript: Transcript, settings) -> tuple[int, ...]:
    """What a fresh start on `step` answers to the conversation before its last message."""
    checkpoint = open_checkpoint(step)
    module = load_model(checkpoint, SoloGroup(torch.device("cpu")), dtype="float32").module
    tokenizer = load_tokenizer(checkpoint.tokenizer_dir, checkpoint.generation_config)
    asked = prompt_ids(Transcript(transcript.messages[:-1]), tokenizer, True)
    return plain_rule(module, asked, settings, tokenizer.eos_id, tokenizer.stop_ids)
