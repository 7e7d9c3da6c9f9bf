"""Describes a checkpoint folder without reading its weights: what it is, what counts, what is not used and why.

`--verify` checks its bytes too. Which tensors a model takes is known only when it loads: `/model` tells.

python -m dist.checkpoint FOLDER [--verify] [--base_model FOLDER] [--lora_alpha NUMBER]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dist.checkpoint.config_keys import CONFIG, GENERATION, TOKENIZER, config_entries, tokenizer_entries
from dist.checkpoint.folder import read_json
from dist.checkpoint.ledger import Entry
from dist.checkpoint.open import DLLM, Checkpoint, open_checkpoint
from dist.checkpoint.rendering import Refused, Renderer, Stopped
from dist.checkpoint.templates import (
    DEFAULT,
    Behaviour,
    Template,
    Templates,
    find_templates,
    observe,
    special_tokens,
)
from dist.checkpoint.verify import Verified, verify
from dist.counted import counted
from dist.errors import ChatError

BAR = 24
FRAMES_PER_S = 10


def describe(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """What there is to know about a checkpoint, as (name, value) lines."""
    yield "folder", str(checkpoint.path)
    if checkpoint.step is not None:
        yield "step", str(checkpoint.step)
        yield (
            "steps of the run",
            ", ".join(
                f"{step.number} ({time.strftime('%Y-%m-%d %H:%M', time.localtime(step.saved_at))})"
                for step in checkpoint.steps
            ),
        )
    yield "layout", checkpoint.layout
    yield "saved by", counted(checkpoint.world_size, "rank")
    if checkpoint.torch_family is not None:
        yield "torch", checkpoint.torch_family
    yield "model", _model(checkpoint)
    yield "parameters", f"{checkpoint.parameters:,}"
    yield "dtype", checkpoint.dtype
    if checkpoint.adapters is not None:
        yield "adapters", checkpoint.adapters
    sizes = [path.stat().st_size for path in checkpoint.files]
    yield "files", f"{len(sizes)}, {sum(sizes) / 1e9:.2f} GB"
    yield "config", str(checkpoint.config_dir)
    yield "tokenizer", str(checkpoint.tokenizer_dir)
    templates = find_templates(checkpoint.tokenizer_dir)
    tokenizer = read_json(checkpoint.tokenizer_dir / TOKENIZER)
    template = templates.choose(None) if not templates.named or DEFAULT in templates.named else None
    behaviour = None if template is None else _behaviour(template, tokenizer)
    yield "chat template", _template_words(template, behaviour, templates)
    yield "replies end at", ", ".join(_ends(checkpoint, tokenizer, behaviour))
    ledger = checkpoint.ledger.plus(
        [*_config_entries(checkpoint), *tokenizer_entries(tokenizer), *templates.entries]
    )
    for number, line in enumerate(ledger.lines(all_names=True)):
        yield "" if number else "not used", line
    missing = list(_missing(checkpoint, template))
    yield "not there", ", ".join(missing) if missing else "nothing that is needed"


def _config_entries(checkpoint: Checkpoint) -> tuple[Entry, ...]:
    """What config.json's keys are good for, and its refusals. Without transformers: what names alone tell."""
    own_code = checkpoint.config.get("auto_map") and checkpoint.config.get("model_type") != DLLM
    if importlib.util.find_spec("transformers") is None or own_code:
        return tuple(config_entries(checkpoint.config, None, "transformers"))
    from dist.checkpoint.model_config import describe as describe_config

    return describe_config(checkpoint.config_dir, checkpoint.config).entries


def _behaviour(template: Template, tokenizer: Mapping[str, Any]) -> Behaviour | str:
    """What the template does with messages, or why it cannot be used."""
    if importlib.util.find_spec("jinja2") is None:
        return "not tried: jinja2 is not installed"
    if not template.text.strip():
        return "empty: prompts are sent as they are"
    try:
        return observe(Renderer(template.text, special_tokens(tokenizer)).render)
    except (Refused, Stopped) as error:
        line = error.line if isinstance(error, Refused) else None
        return f"cannot be used{f', line {line}' if line else ''}: {error}"


def _template_words(template: Template | None, behaviour: Behaviour | str | None, templates: Templates) -> str:
    others = [name for name in templates.named if template is None or name != template.name]
    more = f"; others are {', '.join(others)}" if others and template is not None else ""
    if template is None:
        return f"to be chosen with --chat_template: {', '.join(others)}" if others else "none"
    if not isinstance(behaviour, Behaviour):
        return f"{template.words}, {behaviour}{more}"
    return "; ".join((template.words, *behaviour.notices)) + more


def _ends(checkpoint: Checkpoint, tokenizer: Mapping[str, Any], behaviour: Behaviour | str | None) -> Iterator[str]:
    """What ends a reply, and why."""
    eos = special_tokens(tokenizer).get("eos_token")
    yield f"{eos} (EOS)" if eos else "EOS of the tokenizer's own"
    for config, file in ((checkpoint.generation_config, GENERATION), (checkpoint.config, CONFIG)):
        ids = config.get("eos_token_id")
        if ids is not None:
            yield f"{ids if isinstance(ids, list) else [ids]} ({file})"
            break
    if isinstance(behaviour, Behaviour) and behaviour.turn_end.strip():
        first = behaviour.turn_end.split()[0]
        if first != eos:
            yield f"{first} (the chat template ends turns with it, if it is one token)"


def _model(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
    shape = f", {layers} layers of {hidden}" if layers and hidden else ""
    own_code = ", brings its own code (--trust_remote_code)" if config.get("auto_map") else ""
    return f"{config.get('model_type', 'unknown')}{shape}{own_code}"


def _missing(checkpoint: Checkpoint, template: Template | None) -> Iterator[str]:
    """What a checkpoint may lack, and what that means."""
    if not checkpoint.generation_config:
        yield "generation_config.json (defaults are used)"
    if template is None:
        yield "a chat template (prompts are sent as they are)"


class Bar:
    """A progress bar on stderr, on a terminal that can take it only."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        dumb = environ.get("TERM", "dumb") in ("dumb", "unknown", "")
        accessible = environ.get("ACCESSIBLE", "") not in ("", "0")
        self._draws = sys.stderr.isatty() and not (dumb or accessible or environ.get("NO_COLOR"))
        self._started = time.monotonic()
        self._drawn = 0.0

    def show(self, done: int, total: int) -> None:
        """`done` of `total` bytes are done."""
        now = time.monotonic()
        if not self._draws or now - self._drawn < 1 / FRAMES_PER_S:
            return
        self._drawn = now
        full = min(BAR, BAR * done // max(1, total))
        speed = done / 1e9 / max(now - self._started, 1e-6)
        sys.stderr.write(f"\r[{'#' * full}{'.' * (BAR - full)}] {done / 1e9:.2f} GB, {speed:.2f} GB/s ")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the bar away."""
        if self._drawn:
            sys.stderr.write("\r" + " " * (BAR + 32) + "\r")
            sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dist.checkpoint", description="What a checkpoint folder holds."
    )
    parser.add_argument("folder", help="a run, a step, a folder of shards, a Hugging Face model")
    parser.add_argument("--verify", action="store_true", help="read every byte: checksums, digest")
    parser.add_argument("--base_model", "--base-model", help="the model that adapters belong to")
    parser.add_argument(
        "--lora_alpha", "--lora-alpha", type=float, help="the adapters' alpha, if it is not recorded"
    )
    options = parser.parse_args(arguments)
    try:
        checkpoint = open_checkpoint(options.folder, base_model=options.base_model, lora_alpha=options.lora_alpha)
        lines = list(describe(checkpoint))
        if options.verify:
            lines.append(("verified", str(_verify(checkpoint))))
    except ChatError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    return 0


def _verify(checkpoint: Checkpoint) -> Verified:
    bar = Bar()
    try:
        return verify(checkpoint, bar.show)
    finally:
        bar.clear()


if __name__ == "__main__":
    raise SystemExit(main())
