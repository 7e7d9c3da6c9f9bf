"""How likely the tokens of the last reply are to the model, for `/why`. The conversation stays as it is.

One more forward pass over prompt and reply shows it: whatever passes made the reply, each token is judged by the
text that really stands before it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from chat.conversation.page import Page
from chat.conversation.provenance import is_other
from chat.conversation.state import Talk
from chat.conversation.work import Work
from chat.sessions.nodes import Made, Node
from chat.text.cells import visible
from chat.text.prompt import prompt_digest, prompt_ids
from chat.text.running_text import TokenTexts
from dist.counted import counted
from dist.errors import UsageError
from dist.protocol import TokenScore, Turn
from dist.settings import GenerationSettings, parse_setting

BEST = 3  # likeliest tokens that are shown beside the chosen one
LEAST_SURE, MOST_ROWS = 12, 40
HEAD = ("token", "", "log p", "p", "likeliest")


def why(talk: Talk, work: Work, page: Page, word: str) -> None:
    """Show the tokens of `word` in the last reply, by default those that were least likely. Raises ChatError."""
    reply = talk.last_reply_node
    if reply is None or reply.made is None:
        raise UsageError("There is no reply to look at.", "/why shows how likely the tokens of the last reply are.")
    ids = reply.made.token_ids if talk.same_tokenizer(reply.made) else ()
    ids = ids or talk.tokenizer.encode(reply.text)
    texts = _texts(talk, ids)
    places = _places(texts, word)
    if not places:
        raise UsageError(f"The last reply does not hold {word!r}.", "", "/why alone shows its least likely tokens.")
    prompt = _prompt(talk, page, reply, reply.made)
    scores = _scores(talk, work, prompt, ids)
    if scores is None:
        page.note("No log-probabilities: this model is not causal (its tokens depend on what follows).")
        return
    if not word:
        places = sorted(sorted(places, key=lambda at: scores[at][0])[:LEAST_SURE])
    page.table([_row(talk, at, texts[at], ids[at], scores[at]) for at in places[:MOST_ROWS]], head=HEAD)
    total = sum(one for one, _ in scores)
    others = sum(1 for token, (_, top) in zip(ids, scores) if top and top[0][0] != token)
    maker = reply.made.checkpoint
    if maker is not None and is_other(maker, talk.tree.checkpoints[-1]):
        page.note(f"{talk.facts.who} scores here what another checkpoint wrote.")
    likeliest = f"{others:,} of them not the likeliest (*)" if others else "all of them the likeliest"
    mean = _round(total / len(ids), 3)
    page.note(f"{counted(len(ids), 'token')}, {likeliest}; log p {_round(total, 2)}, {mean} a token.")


def _prompt(talk: Talk, page: Page, reply: Node, made: Made) -> tuple[int, ...]:
    """The reply's prompt, as it is tokenized now."""
    asked = talk.tree.transcript(reply.parent).for_model().without_oldest(made.turn.left_out)
    recorded = GenerationSettings(template_args=parse_setting("template_args", made.settings.get("template_args")))
    ids = prompt_ids(asked, talk.tokenizer, talk.use_template, recorded.template_arguments)
    if made.turn.prompt not in ("", prompt_digest(ids)):
        page.note("The prompt has changed since the reply was made.")
    return ids


def _scores(talk: Talk, work: Work, prompt: tuple[int, ...], ids: tuple[int, ...]) -> tuple[TokenScore, ...] | None:
    best = talk.settings.logprobs if talk.settings.logprobs is not None else BEST
    # All of it is there: no token is made.
    settings = dataclasses.replace(talk.settings, max_new_tokens=len(ids), seed=0)
    turn = Turn(
        prompts=(prompt,),
        settings=settings,
        placeholder=talk.tokenizer.eos_id,
        stop_ids=talk.tokenizer.stop_ids,
        begun=(ids,),
        logprobs=best,
    )
    try:
        return work.reply(turn, lambda: settings, lambda update: None, "scoring the reply: ").logprobs
    finally:
        work.rest()


def _texts(talk: Talk, ids: Sequence[int]) -> list[str]:
    """The text of each token; of a character in several tokens, the first one has it."""
    texts = [""] * len(ids)
    for at, _, text in TokenTexts(talk.tokenizer.decode).pieces(ids, None):
        texts[at] = text
    return texts


def _places(texts: Sequence[str], word: str) -> list[int]:
    """The tokens that hold a letter of `word`, wherever it stands; all of them for the empty word."""
    if not word:
        return list(range(len(texts)))
    whole = "".join(texts)
    held = [False] * len(whole)
    at = whole.find(word)
    while at >= 0:
        held[at : at + len(word)] = [True] * len(word)
        at = whole.find(word, at + len(word))
    places, start = [], 0
    for place, text in enumerate(texts):
        if any(held[start : start + len(text)]):
            places.append(place)
        start += len(text)
    return places


def _row(talk: Talk, at: int, text: str, token: int, score: TokenScore) -> tuple[str, ...]:
    value, top = score
    star = "*" if top and top[0][0] != token else ""
    likeliest = ", ".join(f"{_shown(talk, one)} {_percent(other)}" for one, other in top)
    own = _quoted(text) if text else _shown(talk, token)
    return f"{at + 1:,}", f"{star}{own}", _round(value, 2), _percent(value), likeliest


def _shown(talk: Talk, token: int) -> str:
    return _quoted(talk.tokenizer.decode([token], False))


def _quoted(text: str) -> str:
    return '"' + visible(text).replace("\n", "\\n") + '"'


def _round(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # not -0.00


def _percent(value: float) -> str:
    percent = 100 * math.exp(value)
    return f"{percent:.1f} %" if percent >= 0.05 else "<0.1 %"
