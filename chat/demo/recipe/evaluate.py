"""Measures the embedded model on the held-out questions: right answers, loops, agreement, tokens a pass.

    python -m chat.demo.recipe.evaluate BASE_FOLDER [--adapter FILE] [--json FILE]

Everything is decoded in float32 by the rules of `dist.decode`, so that refining until nothing changes must give
the greedy reply; how often it does is counted. Works on the CPU too, slowly (`--questions 40` asks about so many).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from chat.demo.adapter import merge_adapter
from chat.demo.recipe.batched import AUTO, Reply, reply_all
from chat.demo.recipe.conversations import Question, is_right, test_questions
from chat.demo.recipe.corpus import STOP_ID, opened_for
from chat.demo.recipe.llama import Shape, Weights, shape_of, stack_weights
from chat.demo.recipe.wording import is_broken_off, is_degenerate, is_doubled, is_garbage

# (N, R)
SETTINGS = ((0, 1), (7, AUTO), (7, 4), (7, 2), (3, 2), (15, AUTO))
MAX_NEW_TOKENS = 192


def load_merged(folder: Path, adapter: Path | None, device: str, scale: float) -> tuple[Weights, Shape]:
    """Weights as the demo's checkpoint holds them (bfloat16), widened to float32."""
    from safetensors.torch import load_file
    from transformers import AutoConfig

    shape = shape_of(AutoConfig.from_pretrained(folder))
    state = {name: value.to(torch.bfloat16) for name, value in load_file(folder / "model.safetensors").items()}
    if adapter is not None:
        merge_adapter(state, adapter, scale=scale)
    return stack_weights(
        {name: value.to(device, torch.float32) for name, value in state.items()}, shape.layers
    ), shape


def agreement(reply: Reply, greedy: Reply) -> float:
    """Share of places at which two replies hold the same token, an end counted as a token."""
    one, other = (given.token_ids + [STOP_ID] * given.ended for given in (reply, greedy))
    same = sum(left == right for left, right in zip(one, other))
    return same / max(len(one), len(other))


def measure(
    questions: Sequence[Question], replies: Sequence[Reply], greedy: Sequence[Reply], texts: Sequence[str]
) -> dict[str, Any]:
    """The figures of one topic, or of all, at one setting. Speed leaves out degenerate replies."""
    loops = [is_degenerate(text) for text in texts]
    tokens = [len(reply.token_ids) + reply.ended for reply in replies]
    sound = [index for index, looped in enumerate(loops) if not looped]
    passes = sum(replies[index].forwards for index in sound)
    return {
        "questions": len(questions),
        "right": sum(is_right(question, text) for question, text in zip(questions, texts)),
        "degenerate": sum(loops),
        "garbage": sum(map(is_garbage, texts)),
        "doubled": sum(map(is_doubled, texts)),
        "broken off": sum(map(is_broken_off, texts)),
        "unended": sum(not reply.ended for reply in replies),
        "same": sum(reply.token_ids == plain.token_ids for reply, plain in zip(replies, greedy)),
        "agreement": sum(map(agreement, replies, greedy)) / len(replies),
        "tokens": sum(tokens) / len(tokens),
        "tokens_per_pass": sum(tokens[index] for index in sound) / max(passes, 1),
        "mean_tokens_per_pass": sum(tokens[index] / replies[index].forwards for index in sound)
        / max(len(sound), 1),
    }


def evaluate(
    weights: Weights,
    shape: Shape,
    tokenizer: Any,
    questions: Sequence[Question],
    settings: Sequence[tuple[int, int]],
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """A row of figures for each setting and topic, and per setting the replies' texts. The first setting must be
    (0, 1), greedy."""
    prompts = [opened_for(tokenizer, question.messages, "assistant") for question in questions]
    topics = [*dict.fromkeys(question.topic for question in questions), "all"]
    rows: list[dict[str, Any]] = []
    all_texts: list[list[str]] = []
    greedy: list[Reply] = []
    for length, rounds in settings:
        replies = reply_all(
            weights,
            shape,
            prompts,
            add_eos_length=length,
            refine_iter=rounds,
            max_new_tokens=MAX_NEW_TOKENS,
            stop_id=STOP_ID,
        )
        greedy = greedy or replies
        texts = [tokenizer.decode(reply.token_ids, skip_special_tokens=True) for reply in replies]
        all_texts.append(texts)
        for topic in topics:
            chosen = [index for index, question in enumerate(questions) if topic in (question.topic, "all")]
            figures = measure(
                [questions[index] for index in chosen],
                [replies[index] for index in chosen],
                [greedy[index] for index in chosen],
                [texts[index] for index in chosen],
            )
            rows.append({"N": length, "R": rounds or "auto", "topic": topic, **figures})
    return rows, all_texts


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    names = ("N", "R", "topic", "right", "degenerate", "garbage", "doubled", "broken off", "unended")
    lines = [
        "| " + " | ".join((*names, "same as greedy", "agreement", "tokens", "tokens a pass", "mean")) + " |",
        "|" + "---|" * (len(names) + 5),
    ]
    for row in rows:
        count = row["questions"]
        right = f"{row['right']}/{count}" if row["topic"] not in ("open", "all") else ""
        cells = [row["N"], row["R"], row["topic"], right, f"{row['degenerate']}/{count}", row["garbage"]]
        cells += [row["doubled"], row["broken off"], row["unended"], f"{row['same']}/{count}"]
        shown = ("agreement", "tokens", "tokens_per_pass", "mean_tokens_per_pass")
        cells += [f"{row[name]:.2f}" for name in shown]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line: print the table, and write figures and replies as JSON if asked to."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="Hugging Face folder of SmolLM2-135M-Instruct")
    parser.add_argument("--adapter", type=Path, help="measure the base with this adapter merged")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of the adapter (1.0)")
    parser.add_argument("--questions", type=int, help="about so many of them only")
    parser.add_argument("--json", type=Path, help="write figures and replies here")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights, shape = load_merged(options.base, options.adapter, device, options.scale)
    questions = test_questions()
    if options.questions:
        questions = questions[:: max(1, len(questions) // options.questions)]
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    rows, texts = evaluate(weights, shape, tokenizer, questions, SETTINGS)
    print(table(rows))
    if options.json:
        asked = [question.messages[-1][1] for question in questions]
        options.json.write_text(
            json.dumps({"rows": rows, "asked": asked, "replies": texts}, indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
