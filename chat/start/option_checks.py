"""Refuses options that contradict each other and files that cannot be read or written. Reads none of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from chat.files import expand
from dist.errors import UsageError, either

if TYPE_CHECKING:
    from chat.start.options import LaunchOptions

STDIN = "-"
PROMPT_SUFFIXES = ("", ".txt", ".jsonl", ".parquet")
OUTPUT_SUFFIXES = (".json", ".jsonl")


def check_together(options: LaunchOptions) -> None:
    """Refuse options that contradict each other or would have no effect."""
    if options.prompt is not None and options.prompts_file is not None:
        raise UsageError("--prompt and --prompts_file cannot be given together.", hint="Leave one of them out.")
    if options.has_prompts and options.resume is not None:
        raise UsageError(
            "--resume opens a conversation, so it cannot be given together with prompts.",
            hint="Leave --resume or the prompts out.",
        )
    if options.replay is not None and (options.has_prompts or options.resume is not None):
        raise UsageError(
            "--replay decodes the replies of a session again, so nothing else can be given with it.",
            hint="Leave --resume and the prompts out.",
        )
    if options.parallel.startswith("copies") and "parallel" in options.given and not options.has_prompts:
        raise UsageError(
            f"--parallel {options.parallel} is for prompts given at the start, and there are none.",
            hint="A conversation is held by one model: leave it out, or choose another way.",
        )
    if options.steps and options.parallel == "verl":
        raise UsageError(
            "--steps and --parallel verl cannot be given together.",
            "verl's loader leaves the weights in a form that other checkpoints cannot be read into.",
        )
    for name in ("output_file", "json", "verbose_trace", "rank_progress", "n", "batch_size", "steps"):
        if name in options.given and not options.has_prompts:
            raise UsageError(
                f"--{name} is for prompts given at the start, and there are none.",
                hint="Add --prompt TEXT or --prompts_file FILE.",
            )


def check_prompts_file(options: LaunchOptions) -> None:
    if options.prompts_file in (None, STDIN):
        return
    path = expand(options.prompts_file or "")
    _check_suffix("prompts", path, PROMPT_SUFFIXES)
    if not path.exists():
        raise UsageError(f"No such prompts file: {path}.", hint="Check the path given to --prompts_file.")
    if path.is_dir() or not os.access(path, os.R_OK):
        why = "It is a folder." if path.is_dir() else "Permission denied."
        raise UsageError(f"The prompts file cannot be read: {path}.", why)


def check_output_file(options: LaunchOptions) -> None:
    if options.output_file is None:
        return
    path = expand(options.output_file)
    _check_suffix("output", path, OUTPUT_SUFFIXES)
    if not path.parent.is_dir():
        raise UsageError(
            f"No such folder for the output file: {path.parent}.", hint=f"Make it first: mkdir -p {path.parent}"
        )
    target = path if path.exists() else path.parent
    if path.is_dir() or not os.access(target, os.W_OK):
        why = "It is a folder." if path.is_dir() else f"Permission denied for {target}."
        raise UsageError(f"The output file cannot be written: {path}.", why)
    if options.prompts_file not in (None, STDIN) and _same_file(path, expand(options.prompts_file or "")):
        raise UsageError("--output_file and --prompts_file are the same file.", hint="Choose another output file.")


def _same_file(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _check_suffix(what: str, path: Path, known: tuple[str, ...]) -> None:
    if path.suffix.lower() not in known:
        raise UsageError(
            f"The {what} file {path} has an unknown extension: {path.suffix or 'none'}.",
            f"It takes {either(filter(None, known))}.",
        )
