"""Exports: what each format holds, by readers that we did not write, and that nothing is replaced by accident."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from checkpoints import save_tokenizer
from markdown_it import MarkdownIt

import chat.sessions
from chat.sessions.export import Target, conversation_of, export
from chat.sessions.folder import find_session
from chat.sessions.formats import FORMATS
from chat.sessions.journal import read_journal
from chat.sessions.records import CheckpointRecord
from chat.sessions.reimport import import_session, is_file_to_import
from chat.sessions.session import Asked, Session
from dist.errors import ChatError, UsageError
from dist.settings import GenerationSettings

SETTINGS = GenerationSettings(add_eos_length=7, refine_iter=2).as_dict()
SAMPLED = GenerationSettings(add_eos_length=7, refine_iter="auto", temperature=0.5).as_dict()
FENCED = "See:\n\n```python\nprint('<b>')  # 世界\n```\n\n| a | b |\n|---|---|\n| 1 | *2* |\n"
NASTY = "Is 1 < 2 | 3?\n## You\n~~~\nan open fence, \x1b[31m, \0, \r and <script>alert(1)</script>"
FOLDERS = Path(chat.sessions.__file__).parent


def talked(folder: Path, name: str = "talk") -> Session:
    """A session with two checkpoints, a changed setting, a stopped reply and a message without one."""
    session = Session(folder, name=name, system="Be kind.", program="test")
    session.checkpoint(
        CheckpointRecord(time=1.0, path="/runs/a|b/global_step_3", step=3, digest="abc", dtype="float32")
    )
    session.say(NASTY, Asked(settings=SETTINGS, seed=11))
    session.tokens((1, 2), FENCED[:9])
    session.setting("refine_iter", 1)
    session.tokens((3,), FENCED[9:])
    session.reply("stop", FENCED, {"forwards": 4, "tokens_per_s": 12.5})
    session.checkpoint(CheckpointRecord(time=2.0, path="/runs/a|b/global_step_7", step=7, digest="def"))
    session.say("unheard", Asked(settings=SETTINGS))
    session.no_reply()
    session.say("Go on", Asked(settings=SAMPLED, seed=12, left_out=1))
    session.tokens((4,), "And")
    session.reply("cancelled", "And", {})
    session.say("Last", Asked(settings=SETTINGS))
    session.tokens((5,), "End")
    session.reply("length", "End", {})
    session.close()
    return session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return talked(tmp_path / "sessions")


def written(session: Session, argument: str) -> Path:
    target = Target(argument)
    return export(target, conversation_of(session.tree, session.name, target))


# To read.


def test_text_says_with_each_reply_what_made_it(session: Session, tmp_path: Path) -> None:
    text = written(session, f"{tmp_path}/a.txt").read_bytes().decode()
    assert text.startswith(f"System:\nBe kind.\n\nYou:\n{NASTY}\n\nModel:\n{FENCED}\n\n[step 3, /runs/a|b/global_")
    facts = [line for line in text.split("\n") if line.startswith("[step ")]
    assert (
        "(abc) · float32 · add_eos_length 7 · refine_iter 2 · refine_iter 1 from token 2 on · 3 tokens" in facts[0]
    )
    assert "12.5 tok/s · 4 forward passes · stop · 20" in facts[0]
    assert "step 7" in facts[1]
    assert "refine_iter auto · temperature 0.5 · seed 12 · 1 token · cancelled" in facts[1]
    assert "seed" not in facts[0] + facts[2]
    assert "\nYou (unanswered):\nunheard\n" in text
    assert "\nModel (stopped, made without the oldest 1 exchange):\nAnd\n" in text


def test_markdown_is_read_as_it_is_meant(session: Session, tmp_path: Path) -> None:
    tokens = (
        MarkdownIt("commonmark").enable("table").parse(written(session, f"{tmp_path}/a.md").read_bytes().decode())
    )
    headings = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    # The open fence in the first message swallows nothing, nor does its heading count as one.
    assert headings == [
        *("talk", "System", "You", "Model", "You (unanswered)", "You"),
        *("Model (stopped, made without the oldest 1 exchange)", "You", "Model"),
    ]
    assert [token.content for token in tokens if token.type == "fence"][1] == "print('<b>')  # 世界\n"
    assert [token.type for token in tokens].count("table_open") == 1
    quotes = [tokens[at + 2].children for at, token in enumerate(tokens) if token.type == "blockquote_open"]
    texts = ["".join(part.content for part in children or ()) for children in quotes]
    assert texts[0].startswith("step 3, /runs/a|b/global_step_3 (abc) · float32 · add_eos_length 7")


class Page(HTMLParser):
    """Tags by name, the text by its tag, and whether every tag was closed where it should be."""

    EMPTY = frozenset(("meta", "br", "hr"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}
        self.all: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.all.append(data)
        place = self.open[-1] if self.open else ""
        self.texts[place] = self.texts.get(place, "") + data


def test_html_is_one_sound_page_that_runs_and_fetches_nothing(session: Session, tmp_path: Path) -> None:
    text = written(session, f"{tmp_path}/a.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.tags.count("section") == 8
    assert page.tags.count("table") == 1
    assert {"script", "img", "b", "link", "iframe"}.isdisjoint(page.tags)
    assert "src=" not in text
    assert "url(" not in text
    assert "alert(1)" in page.texts["p"]
    assert "print" in page.texts["span"]
    assert "prefers-color-scheme: dark" in page.texts["style"]
    assert "refine_iter 1 from token 2 on" in page.texts["p"]


def test_html_leaves_math_names_and_paths_as_they_were_written(tmp_path: Path) -> None:
    said = r"2*3*4, \(x\), \{1,2\}, __init__, a_b_c, \d+\.\d*, C:\new\_folder\*.txt, &amp;, **bold** and *it*"
    session = Session(tmp_path / "sessions", name="talk")
    session.say("a", Asked(settings={}))
    session.tokens((1,), said)
    session.reply("stop", said, {})
    page = Page()
    page.feed(written(session, f"{tmp_path}/a.html").read_text())
    session.close()
    shown = r"2*3*4, \(x\), \{1,2\}, __init__, a_b_c, \d+\.\d*, C:\new\_folder\*.txt, &amp;, bold and it"
    assert shown in "".join(page.all)
    assert (page.tags.count("strong"), page.tags.count("em")) == (1, 1)


# All of it.


def test_json_holds_everything_and_gives_the_same_session(session: Session, tmp_path: Path) -> None:
    session.tree.title = "talk"
    path = written(session, f"{tmp_path}/a.json")
    plain = json.loads(path.read_text())
    line = json.loads((FOLDERS / "journal.schema.json").read_text())
    schema = json.loads((FOLDERS / "export.schema.json").read_text())
    schema["properties"]["journal"]["items"] = line
    schema["$defs"] = line["$defs"]
    jsonschema.Draft202012Validator(schema).validate(plain)
    first, last = (one for one in plain["messages"] if one.get("token_ids") in ([1, 2, 3], [5]))
    assert (first["checkpoint"]["step"], last["checkpoint"]["step"]) == (3, 7)
    assert first["changes"] == [{"at": 2, "name": "refine_iter", "value": 1}]
    assert first["settings"]["refine_iter"] == 2
    assert first["content"] == FENCED

    assert is_file_to_import(str(path))
    again, said = import_session(tmp_path / "sessions", str(path), "test")
    assert (again.name, said) == ("talk-2", (f"{path} is now the session talk-2.",))
    again.close()
    assert read_journal(again.path.read_bytes()).tree.records == session.tree.records
    assert again.path.read_bytes() == session.path.read_bytes()


def test_messages_of_elsewhere_become_a_session(tmp_path: Path) -> None:
    path = tmp_path / "their talk.json"
    said = [("system", "s"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in said]}))
    session, _ = import_session(tmp_path, str(path), "test")
    assert session.name == "imported"
    assert [(one.role, one.content) for one in session.transcript.messages] == said
    assert [one.unanswered for one in session.transcript.messages] == [False, True, False, False, True]
    session.close()
    assert find_session(tmp_path, "imported").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no session"),
        ('{"a": 1}', "holds no session"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "cannot be resumed from"),
        ('{"journal": [{"kind": "turn"}]}', "is damaged"),
    ],
)
def test_files_without_a_session_are_refused_and_make_none(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=words):
        import_session(tmp_path / "sessions", str(path), "test")
    assert list(tmp_path.iterdir()) == [path]


# For training.


PAIRS = [("system", "Be kind."), ("user", NASTY), ("assistant", FENCED), ("user", "Go on"), ("assistant", "And")]
PAIRS += [("user", "Last"), ("assistant", "End")]


@pytest.mark.slow
def test_training_data_is_read_by_datasets(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("pyarrow")
    names = {"json": "a.jsonl", "parquet": "a.parquet", "sharegpt": "a.sharegpt.json"}
    paths = {kind: str(written(session, f"{tmp_path}/{name}")) for kind, name in names.items()}
    code = (
        "import datasets, json, sys\n"
        "found = {}\n"
        "for kind, path in json.loads(sys.argv[1]).items():\n"
        "    reader = 'parquet' if kind == 'parquet' else 'json'\n"
        "    read = datasets.load_dataset(reader, data_files=path, split='train', cache_dir=sys.argv[2])\n"
        "    found[kind] = [read.column_names, read[0]]\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(paths), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for kind in ("json", "parquet"):
        columns, row = found[kind]
        assert columns == ["messages"]
        assert [(one["role"], one["content"]) for one in row["messages"]] == PAIRS
    columns, row = found["sharegpt"]
    assert columns == ["id", "conversations"]
    assert [one["value"] for one in row["conversations"]] == [text for _, text in PAIRS]


def test_sharegpt_names_its_speakers(session: Session, tmp_path: Path) -> None:
    (one,) = json.loads(written(session, f"{tmp_path}/a.sharegpt.json").read_text())
    names = {"system": "system", "human": "user", "gpt": "assistant"}
    assert [(names[said["from"]], said["value"]) for said in one["conversations"]] == PAIRS
    assert one["id"] == "talk"


@pytest.mark.long  # verl takes long to import
def test_parquet_is_read_by_verls_dataset_class(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("verl")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = written(session, f"{tmp_path}/a.parquet")
    (messages,) = parquet.read_table(path).to_pydict()["messages"]
    assert [(one["role"], one["content"]) for one in messages] == PAIRS
    save_tokenizer(tmp_path / "tokenizer")
    code = (
        "import sys, transformers\n"
        "from omegaconf import OmegaConf\n"
        "from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[2])\n"
        "config = OmegaConf.create({'max_length': 4000, 'truncation': 'error', 'pad_mode': 'no_padding'})\n"
        "data = MultiTurnSFTDataset(parquet_files=sys.argv[1], tokenizer=tokenizer, config=config)\n"
        "item = data[0]\n"
        "made = [int(one) for one, counts in zip(item['input_ids'], item['loss_mask']) if counts]\n"
        "print(len(data)); print(repr(tokenizer.decode(made)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path), str(tmp_path / "tokenizer")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    count, learned = done.stdout.splitlines()[-2:]
    assert count == "1"
    assert "print('<b>')" in eval(learned)  # what is trained on is what the model said
    assert "open fence" not in eval(learned)


# Where it goes.


@pytest.mark.parametrize(
    ("range_", "questions"),
    [("", 4), ("1-4", 4), ("2-", 3), ("2-3", 2), ("4-9", 1), ("1-1", 1)],
)
def test_a_range_of_exchanges_is_exported(session: Session, tmp_path: Path, range_: str, questions: int) -> None:
    path = written(session, f"{tmp_path}/a b.json {range_}")
    assert path.name == "a b.json"
    plain = json.loads(path.read_text())
    assert [one["role"] for one in plain["messages"]].count("user") == questions
    assert plain["messages"][0]["role"] == "system"
    assert ("journal" in plain) == (questions == 4)


@pytest.mark.parametrize(
    ("range_", "words"), [("0-2", "cannot take"), ("3-2", "cannot take"), ("5-", "has 4 exchanges")]
)
def test_a_range_that_cannot_be_is_refused(session: Session, tmp_path: Path, range_: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        written(session, f"{tmp_path}/a.md {range_}")
    assert not (tmp_path / "a.md").exists()


def test_an_unknown_extension_names_the_known_ones(session: Session, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        written(session, f"{tmp_path}/chat.doc")
    assert "from its extension. It takes .md, .txt, .html, " in str(caught.value)
    assert all(suffix in str(caught.value) for suffix in FORMATS)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_exists_is_replaced_only_on_request_and_new_ones_are_private(
    session: Session, tmp_path: Path, suffix: str
) -> None:
    new = written(session, f"{tmp_path}/new{suffix}")
    assert new.stat().st_mode & 0o777 == 0o600
    path = tmp_path / f"chat{suffix}"
    path.write_text("precious")
    path.chmod(0o640)
    with pytest.raises(UsageError) as caught:
        written(session, str(path))
    assert str(caught.value) == f"{path} exists already. To replace it: /export {path} !"
    assert path.read_text() == "precious"
    written(session, f"{path} !")
    assert path.read_bytes() == new.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(("sessions", new.name, path.name))


def test_the_mark_that_replaces_is_distinguished_from_the_name() -> None:
    for argument, name, force in ((" my chat.md ", "my chat.md", False), ("my chat.md  !", "my chat.md", True)):
        assert (Target(argument).name, Target(argument).force) == (name, force)
    assert (Target("wow!.md").name, Target("wow!.md").force) == ("wow!.md", False)
    assert (Target("2026-11-27.md 2-5 !").name, Target("2026-11-27.md 2-5 !").last) == ("2026-11-27.md", 5)
    assert Target("2026-11-27").name == "2026-11-27"


def test_the_home_folder_is_filled_in(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert written(session, "~/chat.md") == tmp_path / "chat.md"


def test_folders_and_missing_folders_are_refused(session: Session, tmp_path: Path) -> None:
    (tmp_path / "chat.md").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        written(session, f"{tmp_path}/chat.md")
    with pytest.raises(ChatError, match=r"none/chat\.md cannot be written\. There is no folder .*none\."):
        written(session, f"{tmp_path}/none/chat.md")
