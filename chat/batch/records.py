"""The record of one reply, with exactly the fields of the results file. Knows no file and no engine."""

from __future__ import annotations

from typing import Any

from chat.batch.jobs import Circumstances, Job
from chat.text.running_text import text_with
from chat.text.stops import ending, reply_text
from chat.text.tokenizer import ChatTokenizer
from dist.errors import PromptError
from dist.protocol import Reply

CANCELLED, ERROR = "cancelled", "error"

Record = dict[str, Any]


def answered(
    job: Job,
    prompt_ids: tuple[int, ...],
    prompt_text: str,
    reply: Reply,
    seed: int | None,
    tokenizer: ChatTokenizer,
    shared: Circumstances,
) -> Record:
    """The record of a reply to a prompt of these tokens, whose text is `prompt_text`."""
    whole = reply_text(tokenizer, reply.token_ids)
    stops = reply.settings.stop
    response = reply_text(tokenizer, reply.token_ids, stops) if stops else whole
    beyond = len(whole) - len(response)
    full_text = text_with(tokenizer.decode, prompt_ids, prompt_text, reply.token_ids)
    return {
        "prompt": job.given,
        "response": response,
        "full_text": full_text[: len(full_text) - beyond],
        "prompt_len": reply.prompt_len,
        "total_len": reply.prompt_len + len(reply.token_ids),
        "token_ids": list(reply.token_ids),
        "finish_reason": reply.finish,
        **_ended_by(reply, tokenizer),
        **_of_the_run(job, seed, shared),
        **({} if shared.settings.get("logprobs") is None else {"logprobs": _logprobs(reply, tokenizer)}),
        "settings": dict(shared.settings),
        "stats": reply.stats.as_dict(),
    }


def _ended_by(reply: Reply, tokenizer: ChatTokenizer) -> Record:
    """The stop text, or else the stop token, that ended a reply."""
    if reply.finish != "stop":
        return {}
    found = ending(tokenizer, reply.token_ids, reply.settings.stop)
    return {"stop_reason": tokenizer.decode(reply.token_ids[-1:], False) if found is None else found[1]}


def _logprobs(reply: Reply, tokenizer: ChatTokenizer) -> list[Record] | None:
    """An entry for each token; None for a model whose tokens have no probability given those before them."""
    if reply.logprobs is None:
        return None if reply.token_ids else []

    def entry(token: int, value: float) -> Record:
        return {"token_id": token, "token": tokenizer.decode([token], False), "logprob": round(value, 6)}

    return [
        {**entry(token, value), "top": [entry(*one) for one in top]}
        for token, (value, top) in zip(reply.token_ids, reply.logprobs, strict=True)
    ]


def failed(job: Job, error: PromptError, seed: int | None, shared: Circumstances) -> Record:
    """The record of a prompt that could not be answered: no tokens, and the reason under `error`."""
    return {
        "prompt": job.given,
        "response": "",
        "full_text": "",
        "prompt_len": 0,
        "total_len": 0,
        "token_ids": [],
        "finish_reason": ERROR,
        "error": str(error),
        **_of_the_run(job, seed, shared),
        "settings": dict(shared.settings),
        "stats": None,
    }


def _of_the_run(job: Job, seed: int | None, shared: Circumstances) -> Record:
    """What tells it from the run's other replies to the prompt, where there are any."""
    step = {} if shared.step is None else {"step": shared.step}
    return {**step, "sample": job.sample, "seed": seed} if shared.numbered else step
