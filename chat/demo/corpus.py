"""The demo's training corpus: conversations by rule, and the base model's own answers. Built, never committed.

Sources: `conversations` (rules and word lists of this project); prompts that the base model writes itself when it
is shown the opening of a user's turn; the messages of PyPI `chitchat-dataset` 0.9.0 (MIT), as prompts only. The
base answers all open prompts, greedily for refinement and now and then sampled, so that its way of talking is the
target. Answers that loop are dropped. Everything follows from one seed.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from chat.demo import DEFAULT_SYSTEM
from chat.demo.batched import Reply, reply_all
from chat.demo.conversations import Conversation, skill_conversations, system_prompt, templated_prompts
from chat.demo.llama import Shape, Weights

STOP_ID = 2
MAX_PROMPT = 224
MAX_REPLY = 192
SAMPLE_ROOM = 416
SKILL, OPEN, FREE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A tokenised conversation. `replies`: (start, end) of the assistant's turns, stop token included.
    `kind`: SKILL, the text is the truth; OPEN, the base's greedy answer; FREE, sampled by the base."""

    tokens: list[int]
    replies: list[tuple[int, int]]
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything; `rows`: how many replies are generated at once."""

    skills: int = 44_000
    own_prompts: int = 30_000
    templated: int = 9_000
    chitchat: int = 9_000
    follow_ups: int = 10_000
    free_share: float = 0.15
    rows: int = 2048
    seed: int = 1


def is_garbage(text: str) -> bool:
    """Nothing said, words said twice in a row again and again, or a run of one mark."""
    words = text.replace(",", " ,").split()
    twice = sum(left == right for left, right in pairwise(words))
    return (
        not any(mark.isalnum() for mark in text) or twice >= 3 or re.search(r"([^\s=*_#-])\1{5}", text) is not None
    )


def is_degenerate(text: str) -> bool:
    """Garbage or a loop: a sentence three times, or hardly any new phrase."""
    if is_garbage(text):
        return True
    words = text.split()
    for mark in "!?\n":
        text = text.replace(mark, ".")
    sentences = Counter(part.strip(" -*0123456789").lower() for part in text.split("."))
    if any(count >= 3 and len(sentence.split()) >= 4 for sentence, count in sentences.items()):
        return True
    phrases = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return len(phrases) >= 30 and len(set(phrases)) < 0.6 * len(phrases)


def encode_talk(tokenizer: Any, talk: Conversation, kind: int) -> Sample:
    """Tokens and replies of a finished conversation, in the demo's chat template (ChatML)."""
    tokens: list[int] = []
    replies = []
    for role, text in talk:
        tokens += tokenizer.encode(f"<|im_start|>{role}\n", add_special_tokens=False)
        start = len(tokens)
        tokens += [*tokenizer.encode(text, add_special_tokens=False), STOP_ID]
        if role == "assistant":
            replies.append((start, len(tokens)))
        tokens += tokenizer.encode("\n", add_special_tokens=False)
    return Sample(tokens=tokens, replies=replies, kind=kind)


def opened_for(tokenizer: Any, talk: Conversation, role: str) -> list[int]:
    """The conversation so far and the opening of `role`'s turn."""
    opening = tokenizer.encode(f"<|im_start|>{role}\n", add_special_tokens=False)
    return [*encode_talk(tokenizer, talk, OPEN).tokens, *opening]


def chitchat_prompts(count: int, seed: int) -> list[str]:
    """Messages of people chatting, of 2 to 30 words. Needs the package `chitchat-dataset`."""
    from chitchat_dataset import ConversationDataset  # type: ignore[import-not-found]

    texts = sorted({text.strip() for talk in ConversationDataset() for text in talk})
    fitting = [text for text in texts if 2 <= len(text.split()) <= 30]
    return random.Random(seed).sample(fitting, count)


def reply_in_batches(
    weights: Weights, shape: Shape, prompts: Sequence[Sequence[int]], rows: int, temperature: float, limit: int
) -> list[Reply]:
    """Plain decoding of any number of prompts, prompts of like length together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies: dict[int, Reply] = {}
    for at in range(0, len(order), rows):
        batch = order[at : at + rows]
        given = [prompts[index] for index in batch]
        made = reply_all(weights, shape, given, max_new_tokens=limit, stop_id=STOP_ID, temperature=temperature)
        replies.update(zip(batch, made))
    return [replies[index] for index in range(len(prompts))]


def write_prompts(
    weights: Weights, shape: Shape, tokenizer: Any, before: Sequence[Conversation], rows: int
) -> list[str]:
    """For each conversation, what the base thinks a user says next; "" where that is no usable prompt."""
    opened = [opened_for(tokenizer, talk, "user") for talk in before]
    texts = []
    for reply in reply_in_batches(weights, shape, opened, rows, 0.85, 64):
        text = tokenizer.decode(reply.token_ids).strip()
        usable = reply.ended and len(text.split()) >= 2 and not is_degenerate(text) and "<|" not in text
        texts.append(text if usable else "")
    return texts


def answer_openly(
    weights: Weights, shape: Shape, tokenizer: Any, talks: Sequence[Conversation], plan: Plan
) -> list[tuple[Conversation, Sample]]:
    """The base's answer to each conversation that ends with a user's turn; loops and overlong prompts dropped."""
    opened = [(talk, opened_for(tokenizer, talk, "assistant")) for talk in talks]
    opened = [pair for pair in opened if len(pair[1]) <= MAX_PROMPT]
    free = int(len(opened) * plan.free_share)
    made = []
    looped: list[tuple[Conversation, list[int]]] = []
    # A prompt whose greedy answer loops or runs on gets a second, sampled one, which then counts as the truth.
    for kind, temperature, part in ((FREE, 0.9, opened[:free]), (OPEN, 0.0, opened[free:]), (SKILL, 0.6, looped)):
        prompts = [prompt for _, prompt in part]
        replies = reply_in_batches(weights, shape, prompts, plan.rows, temperature, MAX_REPLY)
        for (talk, prompt), reply in zip(part, replies):
            text = tokenizer.decode(reply.token_ids)
            if is_degenerate(text) or "<|" in text or (kind == SKILL and not reply.ended):
                if kind == OPEN:
                    looped.append((talk, prompt))
                continue
            tokens = [*prompt, *reply.token_ids, *([STOP_ID] if reply.ended else [])]
            made.append(
                (
                    [*talk, ("assistant", text)],
                    Sample(tokens=tokens, replies=[(len(prompt), len(tokens))], kind=kind),
                )
            )
    return made


def answers_of_its_own(
    weights: Weights, shape: Shape, tokenizer: Any, samples: Sequence[Sample], count: int, rng: random.Random
) -> list[Sample]:
    """What a model in training answers greedily to `count` of the corpus' open prompts. Degenerate answers are
    FREE: what the base thinks of them is learnt, they are not learnt themselves."""
    asked = rng.sample([sample for sample in samples if sample.kind != SKILL], count)
    prompts = [sample.tokens[: sample.replies[-1][0]] for sample in asked]
    made = []
    for prompt, reply in zip(prompts, reply_in_batches(weights, shape, prompts, count, 0.0, MAX_REPLY)):
        tokens = [*prompt, *reply.token_ids, *([STOP_ID] if reply.ended else [])]
        kind = FREE if is_degenerate(tokenizer.decode(reply.token_ids)) else OPEN
        made.append(Sample(tokens=tokens, replies=[(len(prompt), len(tokens))], kind=kind))
    return made


def build(weights: Weights, shape: Shape, tokenizer: Any, plan: Plan) -> list[Sample]:
    """The whole corpus, shuffled."""
    rng = random.Random(plan.seed)
    torch.manual_seed(plan.seed)
    # 1. Open prompts: the base's own, templates, people chatting.
    blank: list[Conversation] = [[("system", DEFAULT_SYSTEM)]] * plan.own_prompts
    prompts = list(dict.fromkeys(filter(None, write_prompts(weights, shape, tokenizer, blank, plan.rows))))
    prompts += templated_prompts(plan.templated, plan.seed)
    prompts += chitchat_prompts(plan.chitchat, plan.seed) if plan.chitchat else []
    rng.shuffle(prompts)
    # 2. The base answers them, and goes on with some of the conversations, both sides.
    talks: list[Conversation] = [[*system_prompt(rng), ("user", prompt)] for prompt in prompts]
    first = answer_openly(weights, shape, tokenizer, talks, plan)
    going_on = [talk for talk, sample in rng.sample(first, min(plan.follow_ups, len(first))) if sample.kind == OPEN]
    nexts = write_prompts(weights, shape, tokenizer, going_on, plan.rows // 2)
    longer = [[*talk, ("user", text)] for talk, text in zip(going_on, nexts) if text]
    second = answer_openly(weights, shape, tokenizer, longer, plan)
    # 3. Skills by rule.
    skills = [encode_talk(tokenizer, talk, SKILL) for talk in skill_conversations(plan.skills, plan.seed)]
    samples = [sample for _, sample in (*first, *second)] + skills
    samples = [sample for sample in samples if len(sample.tokens) <= SAMPLE_ROOM]
    rng.shuffle(samples)
    return samples


def save(samples: Iterable[Sample], file: Path) -> None:
    """Write the corpus as one torch file of three flat tensors, token ids less 2^15 to fit two bytes."""
    kept = list(samples)
    flat = torch.tensor([token for sample in kept for token in sample.tokens]) - (1 << 15)
    heads = [[sample.kind, len(sample.tokens), len(sample.replies)] for sample in kept]
    spans = [span for sample in kept for span in sample.replies]
    torch.save(
        {
            "tokens": flat.to(torch.int16),
            "heads": torch.tensor(heads, dtype=torch.int16),
            "spans": torch.tensor(spans, dtype=torch.int16),
        },
        file,
    )


def load(file: Path) -> list[Sample]:
    """Read what `save` wrote."""
    stored = torch.load(file, weights_only=True)
    tokens, spans = (stored["tokens"].long() + (1 << 15)).tolist(), stored["spans"].tolist()
    samples, at, turn = [], 0, 0
    for kind, length, turns in stored["heads"].tolist():
        replies = [(start, end) for start, end in spans[turn : turn + turns]]
        samples.append(Sample(tokens=tokens[at : at + length], replies=replies, kind=kind))
        at, turn = at + length, turn + turns
    return samples
