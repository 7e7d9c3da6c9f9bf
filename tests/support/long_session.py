"""A conversation of many turns on disk."""

from __future__ import annotations

from pathlib import Path

from chat.sessions.session import Asked, Session
from chat.text.tokenizer import ChatTokenizer
from dist.settings import GenerationSettings

ASKED = Asked(settings=GenerationSettings().as_dict())
QUESTION = "What is the capital of the country that lies north of number {}?"
REPLY = "The capital of the country that lies north of number {} is the city at the river there, with a port."


def long_session(folder: Path, tokenizer: ChatTokenizer, turns: int) -> None:
    """A session called `long` of so many turns, each reply with its tokens."""
    session = Session(folder, name="long", system="Be brief.")
    for number in range(turns):
        session.say(QUESTION.format(number), ASKED)
        text = REPLY.format(number)
        ids = tokenizer.encode(text)
        for start in range(0, len(ids), 16):
            session.tokens(ids[start : start + 16], tokenizer.decode(ids[start : start + 16]))
        session.reply("stop", text, {})
    session.close()
