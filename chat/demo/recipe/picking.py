"""Which of several answers to a prompt is taken as the truth: one that reads well and can be said in few passes.

A model fills blocks in a few passes where its text follows from what stands before, and most prompts have many good
answers. So each open prompt is answered several times, and the answer is taken that the base finds likely, more so
behind this prompt than behind another, and that the model in training drafts well. Knows no files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from chat.demo.recipe.batched import Reply
from chat.demo.recipe.corpus import (
    LOOP,
    PICKED,
    STOP_ID,
    Sample,
    answered,
    ended_in_time,
    reply_in_batches,
)
from chat.demo.recipe.llama import Shape, Weights
from chat.demo.recipe.packing import COLUMNS, next_draft, pack, sight
from chat.demo.recipe.wording import is_broken_off, is_doubled, is_echo, is_excuse, is_repetitive, is_sound

# Hidden states of one packed batch: (tokens, batch, what each token may see).
Pass = Callable[[Tensor, dict[str, Tensor], Tensor], Tensor]

SAID = 70  # an answer ends with the first sentence that ends past so many characters
LIMIT = 64  # tokens an answer
ROWS = 3072  # replies generated at once
PACKED = 64, 512  # rows and length of a batch that is rated
CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """What counts how much in an answer, beside its mean likelihood by the base."""

    relevance: float = 0.5  # what of that likelihood is owed to the prompt
    drafted: float = 0.4  # mean likelihood of its tokens in the first two rounds, by the model in training
    least: float = -1.3  # an answer that the base finds less likely than this is none


class _Packed(IterableDataset[Tensor]):
    """The samples packed, each once; `sample` is the sample's index."""

    def __init__(self, samples: Sequence[Sample], rows: int, length: int) -> None:
        self.samples, self.rows, self.length = samples, rows, length

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in pack(self.samples[first::step], self.rows, self.length, random.Random(first), rest=True):
            sample = batch[:, :, 2]
            batch[:, :, 2] = torch.where(sample >= 0, sample * step + first, sample)
            yield batch


def _means(index: Tensor, values: Tensor, count: int) -> Tensor:
    """Per sample, the mean of its values."""
    total, many = (torch.zeros(count, device=values.device) for _ in range(2))
    total.index_add_(0, index, values)
    many.index_add_(0, index, torch.ones_like(values))
    return total / many.clamp(min=1)


def _parts(positions: int) -> list[slice]:
    """So many positions in parts, whose logits fit in memory."""
    return [slice(at, at + 16384) for at in range(0, max(positions, 1), 16384)]


def _chances(hidden: Tensor, embed: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, [P]."""
    logits = ((part, (hidden[part] @ embed.T).float()) for part in _parts(len(hidden)))
    return torch.cat([-functional.cross_entropy(some, targets[part], reduction="none") for part, some in logits])


def _likeliest(hidden: Tensor, embed: Tensor) -> Tensor:
    """The likeliest token at each position, [P]."""
    return torch.cat([(hidden[part] @ embed.T).argmax(-1) for part in _parts(len(hidden))])


@torch.no_grad()
def likelihoods(
    samples: Sequence[Sample], run: Pass, embed: Tensor, rows: int, length: int, workers: int, drafts: bool
) -> Tensor:
    """Mean log-probability of each sample's last answer: as plain text, its end left out, or, as `drafts`, of its
    blocks in the first two rounds."""
    starts = torch.tensor([sample.replies[-1][0] for sample in samples], device=embed.device)
    index, values = [], []
    for packed in DataLoader(_Packed(samples, rows, length), batch_size=None, num_workers=workers):
        batch = {name: packed[:, :, at].to(embed.device) for at, name in enumerate(COLUMNS)}
        allowed, tokens = sight(batch), batch["token"]
        last = (batch["position"] >= starts[batch["sample"].clamp(min=0)] - 1) & (batch["sample"] >= 0)
        if drafts:
            chosen = last & (batch["block"] > 0) & (batch["target"] >= 0)
            for round_index in range(2):
                hidden = run(tokens, batch, allowed)
                index.append(batch["sample"][chosen])
                values.append(_chances(hidden[chosen], embed, batch["target"][chosen]))
                said = torch.zeros_like(tokens)
                said[chosen] = _likeliest(hidden[chosen], embed)
                tokens = next_draft(batch, said, round_index)
        else:
            chosen = last & (batch["block"] == 0) & (batch["target"] >= 0) & (batch["target"] != STOP_ID)
            index.append(batch["sample"][chosen])
            values.append(_chances(run(tokens, batch, allowed)[chosen], embed, batch["target"][chosen]))
    return _means(torch.cat(index), torch.cat(values), len(samples)).cpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer to the prompt of that index. `plain`, `anywhere`: its mean log-probability by the base behind its
    prompt and behind another; `drafted`: by the model in training, as drafts."""

    prompt: int
    sample: Sample
    plain: float = 0.0
    anywhere: float = 0.0
    drafted: float = 0.0

    def score(self, taste: Taste) -> float:
        relevance = self.plain - self.anywhere
        return self.plain + taste.relevance * relevance + taste.drafted * self.drafted


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that answers, and how: the temperature, or N and R."""

    weights: Weights
    temperature: float = 0.0
    way: tuple[int, int] = (0, 1)


def prompt_of(sample: Sample) -> list[int]:
    """The conversation up to where its last answer begins."""
    return sample.tokens[: sample.replies[-1][0]]


def is_fit(text: str, asked: str) -> bool:
    """May the answer be taken at all?"""
    good = is_sound(text) and not (is_echo(text, asked) or is_excuse(text))
    return good and not (is_doubled(text) or is_repetitive(text) or is_broken_off(text) or "<|" in text)


def _fitting(tokenizer: Any, prompt: Sequence[int], reply: Reply) -> Sample | None:
    """The answer, ended where it has said enough, if it may be taken."""
    reply = ended_in_time(tokenizer, reply, SAID)
    if not reply.ended or not is_fit(tokenizer.decode(reply.token_ids), _asked(tokenizer, prompt)):
        return None
    return answered(prompt, reply, PICKED)


def _asked(tokenizer: Any, prompt: Sequence[int]) -> str:
    """The user's last message."""
    return str(tokenizer.decode(prompt)).rpartition("user\n")[2].partition("<|")[0]


class _Fitting(Dataset[list["Sample | None"]]):
    """`_fitting` of many, `CHUNK` an item, for a data loader's processes."""

    def __init__(self, tokenizer: Any, prompts: Sequence[Sequence[int]], replies: Sequence[Reply]) -> None:
        self.tokenizer, self.pairs = tokenizer, list(zip(prompts, replies))

    def __len__(self) -> int:
        return -(-len(self.pairs) // CHUNK)

    def __getitem__(self, index: int) -> list[Sample | None]:
        pairs = self.pairs[index * CHUNK : (index + 1) * CHUNK]
        return [_fitting(self.tokenizer, prompt, reply) for prompt, reply in pairs]


def candidates(
    speakers: Sequence[Speaker], prompts: Sequence[Sequence[int]], shape: Shape, tokenizer: Any, workers: int
) -> list[Answer]:
    """All fit answers of the speakers, no answer to a prompt twice."""
    made: dict[tuple[int, tuple[int, ...]], Answer] = {}
    for speaker in speakers:
        replies = reply_in_batches(speaker.weights, shape, prompts, ROWS, speaker.temperature, LIMIT, speaker.way)
        items = DataLoader(
            _Fitting(tokenizer, prompts, replies), batch_size=None, num_workers=workers, collate_fn=_as_it_is
        )
        for index, sample in enumerate(chain.from_iterable(items)):
            if sample is not None:
                made.setdefault((index, tuple(sample.tokens)), Answer(prompt=index, sample=sample))
    return list(made.values())


def _as_it_is(item: list[Sample | None]) -> list[Sample | None]:
    return item


def rated(
    answers: Sequence[Answer], anywhere: Sequence[int], base: Pass, model: Pass, embed: Tensor, workers: int
) -> list[Answer]:
    """The answers with their figures; `anywhere`: a prompt that has nothing to do with them."""
    if not answers:
        return []
    plain, moved, drafted = [], [], []
    for answer in answers:
        sample = answer.sample
        start, end = sample.replies[-1]
        tokens = [*anywhere, *sample.tokens[start:end]]
        # Of this kind nothing but the text is laid out.
        plain.append(replace(sample, kind=LOOP))
        moved.append(Sample(tokens=tokens, replies=[(len(anywhere), len(tokens))], kind=LOOP))
        drafted.append(replace(sample, replies=sample.replies[-1:], kind=PICKED))
    figures = [
        likelihoods(samples, run, embed, *PACKED, workers, drafts).tolist()
        for samples, run, drafts in ((plain, base, False), (moved, base, False), (drafted, model, True))
    ]
    return [
        replace(answer, plain=a, anywhere=b, drafted=c) for answer, a, b, c in zip(answers, *figures, strict=True)
    ]


def best(answers: Sequence[Answer], taste: Taste) -> list[Answer]:
    """For each prompt the answer of the highest score, if there is one likely enough."""
    found: dict[int, Answer] = {}
    for answer in answers:
        other = found.get(answer.prompt)
        if answer.plain < taste.least:
            continue
        if other is None or answer.score(taste) > other.score(taste):
            found[answer.prompt] = answer
    return list(found.values())
