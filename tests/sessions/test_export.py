"""Exports: what each format holds, and that nothing is replaced by accident."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chat.sessions.export import FORMATS, Conversation, export, split_target
from chat.text.transcript import Transcript
from dist.errors import ChatError, UsageError
from dist.settings import GenerationSettings

CONVERSATION = Conversation(
    transcript=Transcript()
    .with_system("Be kind.")
    .with_user("Is 1 < 2 | 3?\nSay `yes`.")
    .with_reply("**Yes**, <b>w\u00f6rld</b>", (1, 2), left_out=2)
    .with_user("unheard")
    .with_user("Go on")
    .with_reply("And", (3,), stopped=True),
    settings=GenerationSettings(add_eos_length=7, refine_iter="auto"),
    facts={"checkpoint": "/runs/a|b/global_step_3", "step": 3},
)

MARKDOWN = """\
# Conversation

## System

Be kind.

## You

Is 1 < 2 | 3?
Say `yes`.

## Model (made without the 2 oldest exchanges)

**Yes**, <b>w\u00f6rld</b>

## You (unanswered)

unheard

## You

Go on

## Model (stopped)

And

## Made with

| | |
|---|---|
| checkpoint | /runs/a\\|b/global_step_3 |
| step | 3 |
| add_eos_length | 7 |
| refine_iter | auto |
| max_new_tokens | 512 |
| max_length | 8192 |
| temperature | 0.0 |
| top_k | 0 |
| top_p | 1.0 |
| seed | none |
| decoder | cached |
"""


def test_markdown_is_the_conversation_with_what_made_it(tmp_path: Path) -> None:
    path = export(str(tmp_path / "chat.md"), CONVERSATION)
    assert path.read_text() == MARKDOWN


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_holds_messages_settings_and_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = export(str(tmp_path / f"chat{suffix}"), CONVERSATION)
    plain = json.loads(path.read_text())
    assert plain["checkpoint"] == {"checkpoint": "/runs/a|b/global_step_3", "step": 3}
    assert plain["settings"] == CONVERSATION.settings.as_dict()
    assert plain["messages"] == [message.as_dict() for message in CONVERSATION.transcript.messages]
    assert plain["messages"][2] == {
        "role": "assistant",
        "content": "**Yes**, <b>w\u00f6rld</b>",
        "token_ids": [1, 2],
        "left_out": 2,
    }
    assert suffix == ".json" or path.read_text().count("\n") == 1


def test_text_is_plain(tmp_path: Path) -> None:
    text = export(str(tmp_path / "chat.txt"), CONVERSATION).read_text()
    assert text.startswith("System:\nBe kind.\n\nYou:\nIs 1 < 2 | 3?\nSay `yes`.\n\nModel (made without")
    assert text.endswith("seed: none\ndecoder: cached\n")


def test_html_shows_contents_literally(tmp_path: Path) -> None:
    class Texts(HTMLParser):
        tags: frozenset[str] = frozenset()
        text = ""

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.tags = self.tags | {tag}

        def handle_data(self, data: str) -> None:
            self.text += data

    parser = Texts()
    parser.feed(export(str(tmp_path / "chat.html"), CONVERSATION).read_text())
    assert "b" not in parser.tags
    assert "**Yes**, <b>w\u00f6rld</b>" in parser.text
    assert "/runs/a|b/global_step_3" in parser.text


def test_an_unknown_extension_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export(str(tmp_path / "chat.doc"), CONVERSATION)
    assert str(caught.value).endswith("from its extension. It takes .md, .json, .jsonl, .txt or .html.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_is_there_is_replaced_only_on_request(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"chat{suffix}"
    path.write_text("precious")
    path.chmod(0o640)
    with pytest.raises(UsageError) as caught:
        export(str(path), CONVERSATION)
    assert str(caught.value) == f"{path} is there already. To replace it: /export {path} !"
    assert path.read_text() == "precious"
    target, force = split_target(f"{path} !")
    export(target, CONVERSATION, force=force)
    assert "Be kind." in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_the_mark_that_replaces_is_told_from_the_name() -> None:
    assert split_target(" my chat.md ") == ("my chat.md", False)
    assert split_target("my chat.md  !") == ("my chat.md", True)
    assert split_target("wow!.md") == ("wow!.md", False)


def test_the_home_folder_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert export("~/chat.md", CONVERSATION) == tmp_path / "chat.md"


def test_folders_and_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "chat.md").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        export(str(tmp_path / "chat.md"), CONVERSATION)
    with pytest.raises(ChatError, match=r"none/chat\.md cannot be written\. No such file or directory\."):
        export(str(tmp_path / "none" / "chat.md"), CONVERSATION)
