"""The record of one reply, with exactly the fields of the results file. Knows no file and no engine."""

from __future__ import annotations

from typing import Any

from chat.batch.jobs import Circumstances, Job
from chat.text.tokenizer import ChatTokenizer
from dist.errors import PromptError
from dist.protocol import Reply

CANCELLED, ERROR = "cancelled", "error"

Record = dict[str, Any]


def answered(
    job: Job,
    prompt_ids: tuple[int, ...],
    reply: Reply,
    seed: int | None,
    tokenizer: ChatTokenizer,
    shared: Circumstances,
) -> Record:
    """The record of a reply."""
    return {
        "prompt": job.given,
        "response": tokenizer.decode(tokenizer.without_stop(reply.token_ids)),
        "full_text": tokenizer.decode((*prompt_ids, *reply.token_ids)),
        "prompt_len": reply.prompt_len,
        "total_len": reply.prompt_len + len(reply.token_ids),
        "token_ids": list(reply.token_ids),
        "finish_reason": reply.finish,
        **_sampling(job, seed, shared),
        "settings": dict(shared.settings),
        "stats": reply.stats.as_dict(),
    }


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
        **_sampling(job, seed, shared),
        "settings": dict(shared.settings),
        "stats": None,
    }


def _sampling(job: Job, seed: int | None, shared: Circumstances) -> Record:
    return {"sample": job.sample, "seed": seed} if shared.numbered else {}
