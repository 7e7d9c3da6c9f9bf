"""Prompts from options, files and standard input, checked before a model loads."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from chat.batch.prompts import Prompts, read_prompts
from chat.start.options import LaunchOptions, parse_options
from chat.text.transcript import Message
from dist.errors import UsageError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def read(*argv: str, stdin: bytes = b"") -> Prompts:
    return read_prompts(parse_options(argv), io.BytesIO(stdin))


def from_file(folder: Path, name: str, data: bytes | str) -> Prompts:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read("--prompts_file", str(path))


def given(prompts: Prompts) -> list[object]:
    return [prompt.given for prompt in prompts]


def refusal(folder: Path, name: str, data: bytes | str) -> str:
    with pytest.raises(UsageError) as caught:
        from_file(folder, name, data)
    return str(caught.value)


def test_no_prompt_option_gives_no_prompts() -> None:
    assert read_prompts(LaunchOptions(), io.BytesIO(b"text")) == ()


def test_one_prompt_is_a_message_of_the_user() -> None:
    (prompt,) = read("--prompt", "Solve: 25 * 4 = ?")
    assert prompt.given == "Solve: 25 * 4 = ?"
    assert prompt.transcript.messages == (Message("user", "Solve: 25 * 4 = ?"),)


def test_a_hyphen_reads_the_whole_of_standard_input_as_one_prompt() -> None:
    assert given(read("--prompt", "-", stdin="Two\nlines \u00e9\n".encode())) == ["Two\nlines \u00e9"]


def test_lines_of_standard_input_are_prompts() -> None:
    assert given(read("--prompts_file", "-", stdin=b"one\n\ntwo")) == ["one", "two"]


@pytest.mark.parametrize("argv", [["--prompt", "-"], ["--prompts_file", "-"]])
@pytest.mark.parametrize("stdin", ["", " \n\n", "\ufeff\u00a0\n"])
def test_standard_input_without_text_is_no_prompt(argv: list[str], stdin: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*argv, stdin=stdin.encode())
    assert str(caught.value) == (
        "There is no prompt. Standard input holds no text. Pipe prompts into the program, give --prompt TEXT, or "
        "start it on a terminal for a conversation."
    )


@pytest.mark.parametrize("name", ["p.txt", "p", "p.TXT"])
def test_each_line_that_is_not_blank_is_a_prompt(tmp_path: Path, name: str) -> None:
    data = "\ufeff  first \r\n\n \t\nsecond\x0c still\u2028second\nlast".encode()
    assert given(from_file(tmp_path, name, data)) == ["  first ", "second\x0c still\u2028second", "last"]


def test_json_lines_hold_prompts_or_messages(tmp_path: Path) -> None:
    records = [{"prompt": "a"}, {"messages": CHAT, "id": 3}, {"prompt": CHAT}, {"messages": None, "prompt": "b"}]
    prompts = from_file(tmp_path, "p.jsonl", "\n".join(map(json.dumps, records)) + "\n\n")
    assert given(prompts) == ["a", CHAT, CHAT, "b"]
    assert list(prompts)[1].transcript.messages == (Message("system", "Be brief."), Message("user", "Hi"))


def test_parquet_holds_prompts_or_messages(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    # What verl's own data sets look like: messages under the name prompt, beside other columns.
    for column, values in (("prompt", ["a", "b"]), ("prompt", [CHAT, CHAT]), ("messages", [CHAT])):
        path = tmp_path / "p.parquet"
        parquet.write_table(pa.table({"data_source": ["x"] * len(values), column: values}), path)
        assert given(read("--prompts_file", str(path))) == values
    parquet.write_table(pa.table({"text": ["x"]}), path)
    with pytest.raises(UsageError, match=r"row 1 has neither prompt nor messages\. It has text\."):
        read("--prompts_file", str(path))
    assert "is not a parquet file" in refusal(tmp_path, "q.parquet", b"PAR1 no")


def test_parquet_without_pyarrow_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "Run `pip install pyarrow`, or convert the file to .jsonl." in refusal(tmp_path, "p.parquet", b"PAR1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 3 is not JSON. "),
        ('"a"', 'line 3 is not a JSON object. A line looks like {"prompt": "..."}.'),
        ('{"text": "a"}', "line 3 has neither prompt nor messages. It has text."),
        ("{}", "line 3 has neither prompt nor messages. It has no keys."),
        ('{"prompt": 3}', "line 3: a prompt is text or a list of messages, not 3."),
        ('{"messages": []}', "line 3: a prompt is text or a list of messages, not []."),
        (
            '{"messages": [{"role": "user"}]}',
            "line 3: a message is an object with the texts role and content, not {'role': 'user'}.",
        ),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "line 3: a message is an object"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            "line 3: the last message is the assistant's, so there is nothing to answer.",
        ),
        ('{"prompt": "\\ud83d"}', "line 3 holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    said = refusal(tmp_path, "p.jsonl", '{"prompt": "fine"}\n\n' + line + '\n{"prompt": "fine"}\n')
    assert f"{tmp_path / 'p.jsonl'}, {message}" in said


def test_a_file_that_is_not_utf_8_is_refused_with_the_place(tmp_path: Path) -> None:
    for name in ("p.txt", "p.jsonl"):
        said = refusal(tmp_path, name, "one\ncaf\u00e9\n".encode("latin-1"))
        assert f"{tmp_path / name} is not UTF-8. Line 2 holds the byte 0xe9" in said


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "p.txt", "\n \n") == f"{tmp_path / 'p.txt'} holds no prompts."
