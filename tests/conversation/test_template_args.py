"""Arguments of the chat template: by option and live, shown, completed, journaled; a template that needs them."""

from __future__ import annotations

import io
import json

import pytest
import torch
from checkpoints import CASES, build_model
from hold import holder

from chat.batch.prompts import read_prompts
from chat.batch.run import run_batch
from chat.commands.table import complete
from chat.sessions.journal import read_journal
from chat.start.options import parse_options
from chat.text.tokenizer import TokenizerOptions, load_tokenizer
from dist.decode.engine import Engine
from dist.errors import CheckpointError
from dist.group.group import SoloGroup
from dist.settings import GenerationSettings

BODY = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
THINKING = BODY + (
    "{% if add_generation_prompt %}assistant{% if enable_thinking is defined and enable_thinking is false %}"
    " (quiet){% endif %}:{% endif %}"
)
NEEDY = "{{ language.upper() }}\n" + BODY + "assistant:"
START = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=6, max_length=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def engine(folder):
    return Engine(build_model(CASES["fsdp1"], folder).eval(), SoloGroup(torch.device("cpu")), max_positions=512)


def with_template(folder, text, **given):
    (folder / "chat_template.jinja").write_text(text)
    return load_tokenizer(folder, None, TokenizerOptions(template_args=given))


def test_an_argument_is_set_live_shown_completed_and_journaled(folder, engine, tmp_path):
    tokenizer = with_template(folder, THINKING)
    talk = holder(engine, tokenizer, tmp_path, START)
    script = ["Hello", "/set template.enable_thinking false", "Hello", "/prompt", "/settings", "/model"]
    repl, console = talk(
        *script, "/set template.enable_thinking default", "/set template.enable_thinkin true", "/replay"
    )
    assert "template.enable_thinking is false from the next reply on." in console.shown
    assert "assistant (quiet):" in console.shown
    assert console.shown.count("template.enable_thinking  false") == 2  # /settings and /model
    assert "template.enable_thinking is not given from the next reply on." in console.shown
    assert "The chat template does not read enable_thinkin.\nDid you mean enable_thinking?" in console.shown
    assert "2 replies replayed: 2 the same, 0 not." in console.shown
    first, second = [node.made.turn for node in repl.talk.tree.nodes() if node.made]
    assert (first.settings["template_args"], second.settings["template_args"]) == ({}, {"enable_thinking": False})
    assert first.prompt != second.prompt
    reading = read_journal(repl.talk.session.path.read_bytes())
    assert reading.tree.records == repl.talk.tree.records
    assert ("template.enable_thinking ", "an argument of the chat template, not given") in {
        (text, about) for text, about, _ in complete(repl, "/set template.")
    }
    assert {"true", "false", "default"} <= {text for text, _, _ in complete(repl, "/set template.enable_thinking ")}
    # A resumed session has them again.
    repl, _ = talk(f"/resume {repl.talk.session.name}")
    assert repl.talk.settings.template_arguments == {"enable_thinking": False}


def test_a_template_that_needs_an_argument_opens_with_it(folder, engine, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        with_template(folder, NEEDY)
    assert "It reads language, which is not given." in str(caught.value)
    assert '--template_args \'{"language": "..."}\' gives it.' in str(caught.value)
    tokenizer = with_template(folder, NEEDY, language="Welsh")
    talk = holder(engine, tokenizer, tmp_path, START.with_value("template_args", {"language": "Welsh"}))
    _, console = talk("Hello", "/prompt", "/set template_args none", "/set template_args [1]")
    assert "WELSH\n" in console.shown
    assert "The chat template fails with these arguments.\nIt says: 'language' is undefined" in console.shown
    assert "template_args cannot be '[1]'.\nIt takes a JSON object" in console.shown


def test_runs_over_prompts_give_them_and_record_them(folder, engine, tmp_path):
    tokenizer = with_template(folder, THINKING)
    replies = []
    for argv in ((), ("--template_args", '{"enable_thinking": false}')):
        options = parse_options(["--prompt", "Hello", "--json", "--max_new_tokens", "4", *argv])
        out = io.StringIO()

        class Streams:
            replies, notices, progress = out, io.StringIO(), False

        settings = GenerationSettings(**{"add_eos_length": 3, **options.settings})
        prompts = read_prompts(options, io.BytesIO())
        run_batch(engine, tokenizer, options, settings, prompts, Streams(), {}, interrupted=lambda: False)
        replies.append(json.loads(out.getvalue()))
    assert [one["settings"]["template_args"] for one in replies] == [{}, {"enable_thinking": False}]
    assert "assistant (quiet):" in replies[1]["full_text"]
    assert "(quiet)" not in replies[0]["full_text"]
    assert replies[1]["prompt_len"] > replies[0]["prompt_len"]


def test_what_no_template_reads_is_said_at_the_start(folder):
    assert any(
        "template_args gives tone, which no chat" in one for one in with_template(folder, THINKING, tone=1).notices
    )
