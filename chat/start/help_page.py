"""The page that `--help` prints, made of the table of options."""

from __future__ import annotations

import textwrap

from chat.start.option_table import OPTIONS, Option

USAGE = """\
usage: bash run_chat.sh [COUNT] [CHECKPOINT] [PROMPT] [options]
       torchrun --standalone --nproc_per_node=COUNT -m chat --checkpoint_dir CHECKPOINT [options]

Talk to a verl checkpoint. Without a checkpoint the embedded model answers, without a prompt a
conversation opens. COUNT is the number of processes, or auto. Of text that is piped in, each line
is a prompt of its own, as with --prompts_file -; with - in place of PROMPT, or --prompt -, all of
it is one prompt. Text that is piped in beside other prompts is refused.

Names may be written with _ or with -. The command line overrides the config file
(dllm-chat/config.toml in the XDG config folder), which overrides the checkpoint's
generation_config.json, which overrides the defaults given here."""


def help_text() -> str:
    """The whole help page, at most 100 columns wide."""
    groups: dict[str, list[Option]] = {}
    for row in OPTIONS.values():
        groups.setdefault(row.group, []).append(row)
    pages = (f"{group}:\n" + "\n".join(_help_lines(row) for row in rows) for group, rows in groups.items())
    return "\n\n".join((USAGE, *pages))


def _help_lines(row: Option) -> str:
    names = f"--{row.name}, --no-{row.name}" if row.negated else f"--{row.name}"
    value = f"[{row.metavar}]" if row.optional else row.metavar
    head = f"  {names} {value}".rstrip()
    indent = " " * 28
    lines = textwrap.wrap(row.help, 100, initial_indent=indent, subsequent_indent=indent)
    if len(head) < len(indent) - 1:
        return "\n".join((head.ljust(len(indent)) + lines[0].lstrip(), *lines[1:]))
    return "\n".join((head, *lines))
