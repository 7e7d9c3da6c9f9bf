"""The demo's training corpus: conversations by rule, and the base model's own answers. Built, never committed.

Sources: `conversations` (rules and word lists of this project); prompts that the base model writes itself when it
is shown the opening of a user's turn; the messages of PyPI `chitchat-dataset` 0.9.0 (MIT), as prompts only. The
teacher, which is the base or an adapted model, answers all open prompts, greedily for refinement and now and then
sampled, so that its way of talking is the target. The base begins well, then runs on and repeats itself, so an
answer is ended after a few sentences; what even so says a thing twice is no target. All follows from one seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from chat.demo import DEFAULT_SYSTEM
from chat.demo.recipe.batched import Reply, reply_all
from chat.demo.recipe.conversations import Conversation, skill_conversations, system_prompt, templated_prompts
from chat.demo.recipe.llama import Shape, Weights
from chat.demo.recipe.wording import ENOUGH, is_degenerate, is_echo, is_excuse, is_garbage, is_sound, shortened

STOP_ID = 2
MAX_PROMPT = 224
MAX_REPLY = 80
# Of an answer without an end, only what comes before is like the base's good ones.
HELD_REPLY = 48
SAMPLE_ROOM = 416
SKILL, OPEN, FREE, LOOP, PICKED = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A tokenised conversation. `replies`: (start, end) of the assistant's turns, stop token included.
    `kind`: SKILL, the text is the truth; PICKED, likewise, a sampled answer; OPEN, a greedy answer; FREE, only the
    base's opinion of it counts; LOOP, an answer that the model must unlearn."""

    tokens: list[int]
    replies: list[tuple[int, int]]
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything; `rows`: how many replies are generated at once."""

    skills: int = 30_000
    own_prompts: int = 22_000
    templated: int = 9_000
    chitchat: int = 8_000
    follow_ups: int = 6_000
    free_share: float = 0.15
    rows: int = 3072
    seed: int = 2


@lru_cache(maxsize=64)
def _encode_often(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of one of the few texts that every conversation holds."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def encode_talk(tokenizer: Any, talk: Conversation, kind: int) -> Sample:
    """Tokens and replies of a finished conversation, in the demo's chat template (ChatML)."""
    tokens: list[int] = []
    replies = []
    for role, text in talk:
        tokens += _encode_often(tokenizer, f"<|im_start|>{role}\n")
        start = len(tokens)
        said = (
            _encode_often(tokenizer, text) if role == "system" else tokenizer.encode(text, add_special_tokens=False)
        )
        tokens += [*said, STOP_ID]
        if role == "assistant":
            replies.append((start, len(tokens)))
        tokens += _encode_often(tokenizer, "\n")
    return Sample(tokens=tokens, replies=replies, kind=kind)


def opened_for(tokenizer: Any, talk: Conversation, role: str) -> list[int]:
    """The conversation so far and the opening of `role`'s turn."""
    opening = _encode_often(tokenizer, f"<|im_start|>{role}\n")
    return [*encode_talk(tokenizer, talk, OPEN).tokens, *opening]


def chitchat_prompts(count: int, seed: int) -> list[str]:
    """Messages of people chatting, of 2 to 30 words. Needs the package `chitchat-dataset`."""
    from chitchat_dataset import ConversationDataset  # type: ignore[import-not-found]

    texts = sorted({text.strip() for talk in ConversationDataset() for text in talk})
    fitting = [text for text in texts if 2 <= len(text.split()) <= 30]
    return random.Random(seed).sample(fitting, count)


def reply_in_batches(
    weights: Weights,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    rows: int,
    temperature: float,
    limit: int,
    way: tuple[int, int] = (0, 1),
) -> list[Reply]:
    """Decoding of any number of prompts, prompts of like length together. `way`: N and R, plain decoding if not
    given."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies: dict[int, Reply] = {}
    for at in range(0, len(order), rows):
        batch = order[at : at + rows]
        given = [prompts[index] for index in batch]
        made = reply_all(
            weights,
            shape,
            given,
            add_eos_length=way[0],
            refine_iter=way[1],
            max_new_tokens=limit,
            stop_id=STOP_ID,
            temperature=temperature,
        )
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
    """The base's answer to each conversation that ends with a user's turn, ended where it has said enough; loops
    and overlong prompts dropped."""
    opened = [(talk, opened_for(tokenizer, talk, "assistant")) for talk in talks]
    opened = [pair for pair in opened if len(pair[1]) <= MAX_PROMPT]
    free = int(len(opened) * plan.free_share)
    made = []
    looped: list[tuple[Conversation, list[int]]] = []
    # A prompt whose greedy answer won't do gets a second, sampled one, which then counts as the truth.
    for kind, temperature, part in ((FREE, 0.9, opened[:free]), (OPEN, 0.0, opened[free:]), (PICKED, 0.6, looped)):
        prompts = [prompt for _, prompt in part]
        replies = reply_in_batches(weights, shape, prompts, plan.rows, temperature, MAX_REPLY)
        for (talk, prompt), given in zip(part, replies):
            reply = ended_in_time(tokenizer, given)
            text = tokenizer.decode(reply.token_ids)
            fit = reply.ended and is_sound(text) and not is_echo(text, talk[-1][1]) and not is_excuse(text)
            good = not is_degenerate(text) if kind == FREE else fit
            if good and "<|" not in text:
                made.append(([*talk, ("assistant", text)], answered(prompt, reply, kind)))
            elif kind == OPEN:
                looped.append((talk, prompt))
    return made


def ended_in_time(tokenizer: Any, reply: Reply, enough: int = ENOUGH) -> Reply:
    """The reply, ended where it has said enough; where there is no such place, its beginning, not ended."""
    text = tokenizer.decode(reply.token_ids)
    short = shortened(text, enough)
    if short == text or (reply.ended and not short):
        return replace(reply, ended=True)
    cut = tokenizer.encode(short, add_special_tokens=False)
    if short and reply.token_ids[: len(cut)] == cut:
        return Reply(token_ids=cut, ended=True, forwards=0)
    return Reply(token_ids=reply.token_ids[:HELD_REPLY], ended=False, forwards=0)


def answered(prompt: Sequence[int], reply: Reply, kind: int) -> Sample:
    tokens = [*prompt, *reply.token_ids, *([STOP_ID] if reply.ended else [])]
    return Sample(tokens=tokens, replies=[(len(prompt), len(tokens))], kind=kind)


def answers_of_its_own(
    weights: Weights, shape: Shape, tokenizer: Any, samples: Sequence[Sample], count: int, rng: random.Random
) -> list[Sample]:
    """What a model in training answers greedily to `count` of the corpus' open prompts: as targets, ended where
    they have said enough; loops to be unlearnt; of the rest, what the base thinks of it."""
    asked = rng.sample([sample for sample in samples if sample.kind != SKILL], count)
    prompts = [sample.tokens[: sample.replies[-1][0]] for sample in asked]
    made = []
    for prompt, reply in zip(prompts, reply_in_batches(weights, shape, prompts, count, 0.0, MAX_REPLY)):
        text, begun = tokenizer.decode(reply.token_ids), ended_in_time(tokenizer, reply)
        if begun.ended and is_sound(tokenizer.decode(begun.token_ids)):
            made.append(answered(prompt, begun, OPEN))
        elif is_degenerate(text):
            made.append(answered(prompt, reply, FREE if is_garbage(text) else LOOP))
        else:
            made.append(answered(prompt, begun, FREE))
    return made


def skill_samples(tokenizer: Any, plan: Plan) -> list[Sample]:
    """The part by rule, which needs no model."""
    return [encode_talk(tokenizer, talk, SKILL) for talk in skill_conversations(plan.skills, plan.seed)]


def open_samples(base: Weights, teacher: Weights, shape: Shape, tokenizer: Any, plan: Plan) -> list[Sample]:
    """The teacher's answers to open prompts of three kinds, and to what the base thinks is said next."""
    rng = random.Random(plan.seed)
    torch.manual_seed(plan.seed)
    # 1. Open prompts: the base's own, templates, people chatting.
    blank: list[Conversation] = [[("system", DEFAULT_SYSTEM)]] * plan.own_prompts
    prompts = list(dict.fromkeys(filter(None, write_prompts(base, shape, tokenizer, blank, plan.rows))))
    prompts += templated_prompts(plan.templated, plan.seed)
    prompts += chitchat_prompts(plan.chitchat, plan.seed) if plan.chitchat else []
    rng.shuffle(prompts)
    # 2. The teacher answers them, and some of the conversations go on.
    talks: list[Conversation] = [[*system_prompt(rng), ("user", prompt)] for prompt in prompts]
    first = answer_openly(teacher, shape, tokenizer, talks, plan)
    going_on = [talk for talk, sample in rng.sample(first, min(plan.follow_ups, len(first))) if sample.kind == OPEN]
    nexts = write_prompts(base, shape, tokenizer, going_on, plan.rows)
    longer = [[*talk, ("user", text)] for talk, text in zip(going_on, nexts) if text]
    second = answer_openly(teacher, shape, tokenizer, longer, plan)
    return [sample for _, sample in (*first, *second)]


def mixed(parts: Iterable[Sample], plan: Plan) -> list[Sample]:
    """The samples that are not too long, shuffled."""
    samples = [sample for sample in parts if len(sample.tokens) <= SAMPLE_ROOM]
    random.Random(plan.seed).shuffle(samples)
    return samples


def build(base: Weights, teacher: Weights, shape: Shape, tokenizer: Any, plan: Plan) -> list[Sample]:
    """The whole corpus, shuffled. The base writes the users' turns, `teacher` the answers."""
    opened = open_samples(base, teacher, shape, tokenizer, plan)
    return mixed((*opened, *skill_samples(tokenizer, plan)), plan)


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
