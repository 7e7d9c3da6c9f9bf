"""Describes a checkpoint folder in a few lines without loading it; `--verify` checks its bytes too. Knows no torch.

python -m dist.checkpoint FOLDER [--verify] [--base_model FOLDER] [--lora_alpha NUMBER]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from dist.checkpoint.open import Checkpoint, open_checkpoint
from dist.checkpoint.verify import verify
from dist.errors import ChatError

BAR = 24
FRAMES_PER_S = 10
TEMPLATE_PLACES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


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
    yield "saved by", f"{checkpoint.world_size} rank{'s' if checkpoint.world_size > 1 else ''}"
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
    missing = list(_missing(checkpoint))
    yield "not there", ", ".join(missing) if missing else "nothing that is needed"


def _model(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
    shape = f", {layers} layers of {hidden}" if layers and hidden else ""
    own_code = ", brings its own code (--trust_remote_code)" if config.get("auto_map") else ""
    return f"{config.get('model_type', 'unknown')}{shape}{own_code}"


def _missing(checkpoint: Checkpoint) -> Iterator[str]:
    """What a checkpoint may lack, and what that means."""
    if not checkpoint.generation_config:
        yield "generation_config.json (defaults are used)"
    places = [checkpoint.tokenizer_dir / name for name in TEMPLATE_PLACES]
    if not any(place.is_file() and "chat_template" in f"{place.name} {place.read_text()}" for place in places):
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
    parser.add_argument("--verify", action="store_true", help="check every byte against its checksum")
    parser.add_argument("--base_model", "--base-model", help="the model that adapters belong to")
    parser.add_argument(
        "--lora_alpha", "--lora-alpha", type=float, help="the adapters' alpha, if it is not recorded"
    )
    options = parser.parse_args(arguments)
    try:
        checkpoint = open_checkpoint(options.folder, base_model=options.base_model, lora_alpha=options.lora_alpha)
        lines = list(describe(checkpoint))
        if options.verify:
            lines.append(("verified", _verify(checkpoint)))
    except ChatError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    return 0


def _verify(checkpoint: Checkpoint) -> str:
    bar = Bar()
    try:
        return verify(checkpoint, bar.show)
    finally:
        bar.clear()


if __name__ == "__main__":
    raise SystemExit(main())
