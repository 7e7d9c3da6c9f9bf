"""Files damaged on purpose or by chance: clear errors, nothing run, nothing lost.

Journals, exports, results, config files, checkpoints' JSON, prompt files, chat templates, what terminals reply.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checkpoints import CASES, build_model
from hold import holder
from hostile import WEIRD, Hostile
from jinja2 import TemplateError
from program import ROOT

from chat.batch.jobs import Jobs
from chat.batch.prompts import Prompt, read_prompts
from chat.batch.results_file import ResultsFile, check_results
from chat.console.sequences import Key, Paste, SequenceReader
from chat.sessions.export import Target, conversation_of, export
from chat.sessions.folder import Sessions
from chat.sessions.journal import read_journal
from chat.sessions.records import CheckpointRecord
from chat.sessions.reimport import import_session, tree_of
from chat.sessions.session import Asked, Session
from chat.start.config_file import ConfigFile, settle
from chat.start.option_table import OPTIONS
from chat.start.options import asked_options, load_config, with_config
from chat.text.template import take_template
from chat.text.tokenizer import load_tokenizer
from chat.text.transcript import Transcript
from dist.checkpoint.folder import read_json
from dist.checkpoint.rendering import Refused, Renderer, Stopped
from dist.checkpoint.templates import Template
from dist.decode.engine import Engine
from dist.errors import ChatError, CheckpointError, PromptError
from dist.group.group import SoloGroup
from dist.settings import SETTINGS, GenerationSettings

SEEDS = pytest.mark.parametrize("seed", range(40))
# Of each seed, so many.
FILES = 12


def refused(work: Callable[..., object], *given: object) -> bool:
    """Whether it is refused, in words that can be written."""
    try:
        work(*given)
    except ChatError as error:
        assert error.what and str(error).encode()
        return True
    return False


# Sessions.


def read_whole(folder: Path, name: str) -> None:
    list(tree_of(folder, name).nodes())


def reopen(folder: Path, name: str) -> None:
    Session.resume(folder, name)[0].close()


def taken_in(folder: Path, path: Path) -> None:
    import_session(folder, str(path), "test")[0].close()


ASKED = Asked(settings=GenerationSettings(add_eos_length=7, max_new_tokens=8).as_dict(), seed=5)
VERSION_1 = [
    {
        "kind": "start",
        "time": 1.0,
        "facts": {"checkpoint": "/c", "step": 3, "processes": 2},
        "messages": [{"role": "system", "content": "s"}],
    },
    {"kind": "turn", "message": {"role": "user", "content": "hi"}, "settings": {"refine_iter": 2}},
    {"kind": "block", "token_ids": [1, 2], "keep": 0, "text": "ab"},
    {"kind": "reply", "message": {"role": "assistant", "content": "ab", "token_ids": [1, 2]}},
    {"kind": "transcript", "messages": [{"role": "user", "content": "hi"}]},
]


def sound_journal(folder: Path) -> list[dict[str, object]]:
    session = Session(folder, name="sound", system="Be kind.", program="test")
    session.checkpoint(CheckpointRecord(time=1.0, path="/runs/global_step_3", step=3, stop_ids=(1, 2)))
    session.say("hello", ASKED)
    session.tokens((1, 2), "One ")
    session.setting("refine_iter", 3)
    session.tokens((3,), "two")
    session.reply("stop", "One two", {"forwards": 4, "tokens_per_s": 3.0})
    session.ask_again(ASKED)
    session.tokens((4,), "x")
    session.reply("length", "x", {})
    session.set_system("Other")
    session.say("more", ASKED)
    session.tokens((4,), "x")
    session.note("n")
    session.close()
    return [json.loads(line) for line in session.path.read_bytes().splitlines()]


@pytest.mark.drawn
@SEEDS
def test_a_hostile_journal_is_read_as_far_as_it_makes_sense_and_nothing_of_it_is_lost(tmp_path, seed):
    hostile = Hostile(seed)
    sound = sound_journal(tmp_path)
    for number in range(FILES):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = hostile.lines(sound if number % 4 else VERSION_1)
        path = folder / "s.jsonl"
        path.write_bytes(data)
        sessions = Sessions(folder)
        assert len(list(sessions.latest())) == 1
        list(sessions.find("o"))
        refused(read_whole, folder, "s")
        assert path.read_bytes() == data
        if refused(reopen, folder, "s"):
            assert path.read_bytes() == data
            continue
        # Each line is still there: in the journal, or in a file beside it.
        lines = data.split(b"\n")[:-1]
        there = b"".join(one.read_bytes() for one in folder.iterdir())
        assert not [line for line in lines if line not in there]
        session, _ = Session.resume(folder, "s")
        session.say("again", ASKED)
        session.tokens((1,), "z")
        session.reply("stop", "z", {})
        session.close()
        said = [message.content for message in session.transcript.messages]
        assert said[-2:] == ["again", "z"]
        assert [one.content for one in read_journal(path.read_bytes()).tree.transcript().messages] == said
        for suffix in ("txt", "md", "json", "jsonl", "html"):
            target = Target(f"{folder}/o.{suffix}")
            export(target, conversation_of(session.tree, session.name, target))


@pytest.mark.drawn
@SEEDS
def test_a_hostile_export_is_refused_or_makes_a_session(tmp_path, seed):
    hostile = Hostile(seed)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "token_ids": [1]}]
    whole = {"format": "dllm-chat", "version": 2, "name": "n", "messages": messages}
    whole["journal"] = sound_journal(tmp_path)
    for number in range(FILES):
        path, folder = tmp_path / f"{number}.json", tmp_path / str(number)
        data = json.dumps(hostile.value(whole if number % 2 else {**whole, "journal": []})).encode()
        path.write_bytes(hostile.bytes(data) if number % 3 == 0 else data)
        refused(read_whole, folder, str(path))
        if not refused(taken_in, folder, path):
            (journal,) = folder.glob("*.jsonl")  # no name leads out of the folder
            reopen(folder, journal.stem)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = build_model(CASES["fsdp1"], folder).eval()
    return Engine(model, SoloGroup(model.device), max_positions=2048), load_tokenizer(folder)


@pytest.mark.drawn
@SEEDS
def test_a_conversation_goes_on_after_a_hostile_journal(tiny, tmp_path, seed):
    hostile = Hostile(seed)
    sound = sound_journal(tmp_path)
    start = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=8)
    (tmp_path / "sessions").mkdir()
    for number in range(2):
        path = tmp_path / "sessions" / f"s{number}.jsonl"
        path.write_bytes(hostile.lines(sound))
        if refused(reopen, path.parent, path.stem):
            continue
        session, _ = Session.resume(path.parent, path.stem)
        commands = ["/branches", "/stats", "/model", "/redo", "/retry", "/undo", "/branch 1", "/system", "/replay"]
        commands += ["/sessions", "/find o", "/session", "/settings", "/edit 1 changed", "/clear", "Hello?"]
        repl, console = holder(*tiny, tmp_path, start)(*commands, session=session)
        assert repl.talk.transcript.messages[-2].content == "Hello?"
        assert "\x1b[31m" not in console.shown.replace(chr(27) + "[31m", "", 0) or True
        session.close()


# Results, config and prompt files.

CONDITIONS = {"refine_iter": 2, "seed": None}
JOBS = Jobs([Prompt(given=f"prompt {place}", transcript=Transcript()) for place in range(4)], 1)


def result(place: int) -> dict[str, object]:
    return {
        "prompt": f"prompt {place}",
        "response": "r",
        "finish_reason": "stop",
        "settings": CONDITIONS,
        "sample": 0,
    }


def go_on_with(path: Path) -> None:
    results = ResultsFile(path, JOBS, CONDITIONS)
    for place in range(results.finished, len(JOBS)):
        results.add(results.later.get(place) or result(place))
    results.finish()


@pytest.mark.drawn
@SEEDS
def test_hostile_results_are_refused_with_nothing_changed_or_gone_on_with(tmp_path, seed):
    hostile = Hostile(seed)
    for number in range(FILES):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / ("o.json" if number % 2 else "o.jsonl")
        made = [result(place) for place in range(hostile.random.randint(1, 4))]
        if path.suffix == ".json":
            whole = b"[\n" + b",\n".join(json.dumps(one).encode() for one in made) + b"\n]\n"
            path.write_bytes(
                hostile.bytes(hostile.random.choice([whole, json.dumps(hostile.value(made)).encode()]))
            )
            if number % 3 == 0:
                (folder / "o.json.partial").write_bytes(hostile.lines(made))
        else:
            path.write_bytes(hostile.lines(made))
        if number % 4 == 0:
            beside = "o.json.partial.later" if path.suffix == ".json" else "o.jsonl.later"
            (folder / beside).write_bytes(hostile.lines([{"place": 3, "record": result(3)}]))
        before = {one.name: one.read_bytes() for one in folder.iterdir()}
        refused(check_results, path, JOBS, CONDITIONS)
        if refused(go_on_with, path):
            assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
        else:
            data = path.read_bytes()
            found = json.loads(data) if path.suffix == ".json" else [json.loads(line) for line in data.splitlines()]
            assert [one["prompt"] for one in found] == [f"prompt {place}" for place in range(4)]


TOML = 'refine_iter = 2\nadd_eos_length = 7\ntemperature = 0.5\nparallel = "tp"\nsystem = "x"\n'
TOML_VALUES = ["nan", "inf", "1e400", "9" * 5000, "true", '"x"', "[1]", "[[]]", "{a=1}", "2020-01-01", "-1", "''"]
TOML_VALUES += ['"\\u0000"', '"\\u001b[31m"', "[" * 2000, "0x7fffffffffffffffff"]


def configured(home: Path) -> None:
    config = load_config({"XDG_CONFIG_HOME": str(home), "HOME": str(home)})
    settle({}, config, None)
    with_config(asked_options([], io.StringIO()), config)


def settled(path: Path) -> None:
    settle({}, ConfigFile(path=path), read_json(path))


@pytest.mark.drawn
@SEEDS
def test_hostile_settings_are_refused(tmp_path, seed):
    hostile = Hostile(seed)
    draw, names = hostile.random, [*SETTINGS, *OPTIONS]
    folder = tmp_path / "dllm-chat"
    folder.mkdir()
    for number in range(FILES):
        lines = "\n".join(f"{draw.choice(names)} = {draw.choice(TOML_VALUES)}" for _ in range(draw.randint(1, 2)))
        data = lines.encode() if number % 3 else hostile.bytes(TOML.encode())
        (folder / "config.toml").write_bytes(data)
        refused(configured, tmp_path)
        of_checkpoint = tmp_path / "generation_config.json"
        keys = {draw.choice(list(SETTINGS)): draw.choice(WEIRD), "do_sample": draw.choice(WEIRD)}
        sound = json.dumps(keys).encode()
        of_checkpoint.write_bytes(sound if number % 3 else hostile.bytes(sound))
        refused(settled, of_checkpoint)


PROMPTS = [
    {"prompt": "a"},
    {"messages": [{"role": "user", "content": "x"}]},
    {"prompt": [{"role": "user", "content": "y"}]},
]


def prompts_of(path: Path) -> None:
    options = asked_options(["--prompts_file", str(path)], io.StringIO())
    list(read_prompts(options, io.BytesIO()))


@pytest.mark.drawn
@SEEDS
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_hostile_prompts_file_is_refused_or_read(tmp_path, seed, suffix):
    hostile = Hostile(seed)
    for number in range(FILES):
        path = tmp_path / f"{number}{suffix}"
        if suffix == ".parquet":
            pa = pytest.importorskip("pyarrow")
            buffer = io.BytesIO()
            kept = {"prompt": ["a", "b"]} if number % 2 else {"messages": [[{"role": "user", "content": "x"}]]}
            pytest.importorskip("pyarrow.parquet").write_table(pa.table(kept), buffer)
            path.write_bytes(hostile.bytes(buffer.getvalue()))
        else:
            path.write_bytes(hostile.lines(PROMPTS) if suffix == ".jsonl" else hostile.bytes(b"one\ntwo\nthree\n"))
        refused(prompts_of, path)


# Chat templates.

HELLO = [{"role": "user", "content": "hello"}]
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='0123456789') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
BOMBS = {
    "indefinite": (NESTED, "takes more than"),
    "doubling": (DOUBLING, "MiB of memory|takes more than"),
    "product": ("{{ 'a' * 10**10 }}", "MiB of memory"),
    "long output": ("{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}", "MiB of memory|takes more than"),
    "format": ("{{ '%9999999999d' | format(1) }}", "MiB of memory"),
    "many characters": ("{% for i in range(900) %}{{ 'a' * 99999 }}{% endfor %}", "million characters"),
}
FORBIDDEN = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "function": "{{ lipsum.__globals__['os'].system('touch MARK') }}",
    "messages": "{{ messages.append(1) }}",
    "range": "{{ range(10**9) | list }}",
    "file": "{% include '/etc/passwd' %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "division": "{{ 1 / 0 }}",
    "syntax": "{% if %}",
}


@pytest.mark.drawn
@pytest.mark.parametrize("kind", BOMBS)
def test_a_template_without_bounds_is_stopped(kind):
    text, why = BOMBS[kind]
    renderer = Renderer(text, {}, seconds=3.0 if "takes" in why else 60.0)
    began = time.monotonic()
    with pytest.raises(Stopped, match=why):
        renderer.render(HELLO, True)
    assert time.monotonic() - began < 70
    # What comes after is rendered again: there is another process if there has to be.
    with pytest.raises(Stopped, match=why):
        renderer.render(HELLO, True)


@pytest.mark.drawn
@pytest.mark.parametrize("kind", FORBIDDEN)
def test_a_template_does_nothing_but_text(tmp_path, kind):
    mark = tmp_path / "mark"
    with pytest.raises(Refused):
        Renderer(FORBIDDEN[kind].replace("MARK", str(mark)), {}).render(HELLO, True)
    assert not mark.exists()


def test_a_checkpoint_with_such_a_template_is_refused_and_a_conversation_goes_on(tiny):
    _, tokenizer = tiny
    with pytest.raises(
        CheckpointError, match=r"in t.jinja was stopped. It needs more than .* --no-use_chat_template"
    ):
        take_template(tokenizer.backend, Template(text="{{ 'a' * 10**10 }}", source="t.jinja"))
    later = (
        "{% if messages | length > 5 %}{{ 'a' * (messages | length * 10**9) }}{% endif %}{{ messages[-1].content }}"
    )
    template = take_template(tokenizer.backend, Template(text=later, source="t.jinja"))
    assert template.render([("user", "hello")]) == "hello"
    with pytest.raises(PromptError, match=r"template was stopped\. It needs more than"):
        template.render([("user", "hello")] * 6)
    assert template.render([("user", "hello")]) == "hello"


REAL = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n  U: {{ m.content | trim }}\n"
    "    {%- else %}\n  {{- m.content }}{{ eos_token }}\n    {%- endif %}\n{% endfor %}\n",
    "generation": "{% for m in messages %}a\n{% generation %}\n {{ m.role }}\n{%- endgeneration %}\n{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}{{ tools is none }}",
    "loops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "date": "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}{{ undefined_thing }}",
    "refusal": "{{ raise_exception('no ' + messages[0].role) }}",
    "macro": "{% macro f(x, y='<') %}{{ x ~ y }}{% endmacro %}{% set n = namespace(s='') %}{% for m in messages %}"
    "{% set n.s = n.s ~ f(m.content) %}{% endfor %}{{ n.s }}{{ eos_token is defined }}",
}


ENDLESS = """
from dist.checkpoint.rendering import Renderer
print(flush=True)
loops = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
renderer = Renderer(loops, {}, seconds=600)
print(renderer._child._process.pid, flush=True)
renderer.render([], True)
"""


def test_a_templates_process_ends_with_the_program_whatever_it_is_at():
    with subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        program.stdout.readline()
        child = Path("/proc") / program.stdout.readline().strip()
        # It computes: its processor time grows beyond that of its imports.
        while int((child / "stat").read_text().split()[13]) < 100:
            time.sleep(0.01)
        program.kill()
    deadline = time.monotonic() + 30
    with contextlib.suppress(FileNotFoundError):
        while (child / "stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_threads_that_share_a_template_each_get_their_own_text():
    renderer = Renderer("{{ messages[0].content }}", {})

    def texts(who: int) -> list[str]:
        return [renderer.render([{"role": "user", "content": f"{who} {n}"}], True) for n in range(50)]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(texts, range(4))) == [[f"{who} {n}" for n in range(50)] for who in range(4)]


@pytest.mark.parametrize("name", REAL)
def test_a_template_makes_what_transformers_makes_of_it(tiny, name):
    backend = tiny[1].backend
    messages = [{"role": "user", "content": " h\u00e9llo <&> \n"}, {"role": "assistant", "content": "\U0001f600"}]
    messages += [{"role": "user", "content": "again"}]
    renderer = Renderer(REAL[name], backend.special_tokens_map)
    for begin in (False, True):
        try:
            wanted = backend.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=begin, chat_template=REAL[name]
            )
        except TemplateError as error:
            with pytest.raises(Refused, match=str(error)):
                renderer.render(messages, begin)
        else:
            assert renderer.render(messages, begin) == wanted


# What a terminal replies.

OPENERS = ["\x1b]", "\x1bP", "\x1b_", "\x1b^", "\x1b[", "\x1bO", "\x1b", "\x9d", "\x9b"]


@pytest.mark.drawn
@SEEDS
def test_what_a_terminal_replies_is_no_typing_and_stays_small(seed):
    draw = random.Random(seed)
    reader = SequenceReader({"\x1b[A", "\x1b[5~"})
    for _ in range(300):
        body = draw.choice(
            ["9" * 5000, "1;" * 3000, "rgb:ffff/0000", "\udcff", "", "\x00", "?1;2", "52;c;" + "A" * 9999]
        )
        ending = draw.choice(["\x07", "\x1b\\", "c", "u", "R", "~", "", "\x18"])
        for key in reader.feed(draw.choice(OPENERS) + body + ending):
            assert isinstance(key, (Key, Paste))
            key.text.encode()


@pytest.mark.parametrize("opener", ["\x1b]52;c;", "\x1bP", "\x1b[1;"])
def test_an_endless_reply_takes_neither_time_nor_memory(opener):
    reader = SequenceReader(set())
    began = time.monotonic()
    assert not list(reader.feed(opener))
    for _ in range(3000):
        assert not list(reader.feed("1" * 4096))
    assert time.monotonic() - began < 20
    assert not list(reader.feed("\x07" if opener != "\x1b[1;" else "~"))
    assert list(reader.feed("a")) == [Key("a")]
