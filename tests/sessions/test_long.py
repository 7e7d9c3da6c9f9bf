"""A conversation of 1,000 turns: taken up again and gone on with in no time, nothing tokenized twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from checkpoints import save_tokenizer
from long_session import long_session

from chat.sessions.session import Session
from chat.text.prompt import fit
from chat.text.tokenizer import ChatTokenizer, load_tokenizer
from dist.settings import GenerationSettings

TURNS = 1000


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("max_length", "in_prompt"), [(8192, 100), (1 << 30, TURNS + 1)])
def test_1000_turns_are_resumed_in_a_second_and_the_next_message_is_sent_in_a_third_of_one(
    tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch, max_length: int, in_prompt: int
) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)  # making it is not what is measured
    long_session(tmp_path, tokenizer, TURNS)
    monkeypatch.undo()
    settings = GenerationSettings(max_length=max_length)
    encoded: list[str] = []
    really = tokenizer.backend.encode
    monkeypatch.setattr(
        type(tokenizer.backend), "encode", lambda _, text, **how: (encoded.append(text), really(text, **how))[1]
    )
    resume, send = [], []
    for attempt in range(3):
        began = time.perf_counter()
        session, _ = Session.resume(tmp_path, "long")
        transcript = session.transcript
        resume.append(time.perf_counter() - began)
        session.close()
        assert len(transcript.exchanges) == TURNS
        assert encoded == [] or attempt
        began = time.perf_counter()
        fitted = fit(transcript.with_user("And now?"), tokenizer, settings, None, use_template=True)
        send.append(time.perf_counter() - began)
        assert abs(TURNS + 1 - len(fitted.left_out) - in_prompt) < 60
        assert all(len(text) < 2000 for text in encoded), "a whole prompt was tokenized"
        assert len(encoded) == len(set(encoded)), "a text was tokenized twice"
    print(f"resume {min(resume):.3f} s, next prompt {send[0]:.3f} s at first, {min(send):.3f} s later")
    assert min(resume) < 1.0
    assert min(send) < 0.3
