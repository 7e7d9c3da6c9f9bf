"""The table of command-line options: names, groups, help, and how each value is read. Knows no argv."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chat.files import has_lone_surrogates
from dist.errors import UsageError, did_you_mean, either
from dist.setting_kinds import Texts
from dist.settings import SETTINGS, parse_setting, setting_text

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

PARALLEL = ("auto", "tp", "fsdp", "none", "verl", "copies")

Read = Callable[[object], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row of the table. `read` is None for a flag; it raises ValueError saying what is allowed.

    negated     a flag that can also be given as `--no-NAME`
    optional    the value may be left out; then it is the empty text
    repeatable  it can be given several times, and all its values count
    in_config   the config file may hold it
    """

    name: str
    group: str
    help: str
    metavar: str = ""
    read: Read | None = None
    negated: bool = False
    optional: bool = False
    repeatable: bool = False
    in_config: bool = False


def _text(value: object) -> str:
    if not isinstance(value, str) or has_lone_surrogates(value):
        raise ValueError("It takes text in UTF-8.")
    return value


def _some_text(value: object) -> str:
    if not _text(value).strip():
        raise ValueError("It takes text that is not empty.")
    return _text(value)


def _path(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("It takes a path.")
    return value


def _word(*words: str, short: Mapping[str, str] | None = None) -> Read:
    def read(value: object) -> str:
        word = (short or {}).get(str(value), str(value))
        if word not in words:
            raise ValueError(f"It takes {either(words)}. {did_you_mean(word, words)}".rstrip())
        return word

    return read


def _parallel(value: object) -> str:
    word, colon, ranks = str(value).partition(":")
    if word == "copies" and colon:
        return f"{word}:{_count(ranks)}"
    read: str = _word(*PARALLEL)(value)
    return read


def _count(value: object) -> int:
    allowed = "It takes a whole number from 1."
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(allowed)
    try:
        number = int(value)
    except ValueError:
        raise ValueError(allowed) from None
    if number < 1:
        raise ValueError(allowed)
    return number


def _steps(value: object) -> tuple[str, ...]:
    words = tuple(word.strip() for word in str(value).split(","))
    if not all(words):
        raise ValueError("It takes steps separated by commas, such as 100,200,latest.")
    return words


def _above_zero(value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise ValueError("It takes a number above 0.")
    return number


def _setting_reader(name: str) -> Read:
    def read(value: object) -> Any:
        try:
            return parse_setting(name, value)
        except UsageError as error:
            raise ValueError(error.why) from None

    return read


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("It takes true or false.")
    return value


MODEL, PROMPTS, DECODING, CONVERSATION = "Model", "Prompts", "Decoding", "Conversation"
HOSTS, ALWAYS = "Hosts", "Always"

OPTIONS: dict[str, Option] = {
    row.name: row
    for row in (
        Option(
            name="checkpoint_dir",
            group=MODEL,
            metavar="DIR",
            read=_path,
            help="a verl checkpoint folder (global_step_N), the folder above it, or a Hugging Face model folder",
        ),
        Option(
            name="parallel",
            group=MODEL,
            metavar="WAY",
            read=_parallel,
            in_config=True,
            help="how the model is spread over the processes: auto, tp (each layer is split), fsdp, none or verl; "
            "for many prompts also copies[:RANKS], several copies of the model, each on RANKS ranks, which is "
            "what auto uses for them (default auto)",
        ),
        Option(
            name="dtype",
            group=MODEL,
            metavar="TYPE",
            read=_word("auto", "float32", "bfloat16", "float16", short=DTYPES),
            in_config=True,
            help="type of the weights: auto, float32, bfloat16 or float16 (default auto)",
        ),
        Option(
            name="base_model",
            group=MODEL,
            metavar="DIR",
            read=_path,
            help="the base model's folder, for a checkpoint that holds adapters only",
        ),
        Option(
            name="lora_alpha",
            group=MODEL,
            metavar="X",
            read=_above_zero,
            help="alpha of the adapters, where the checkpoint does not record it",
        ),
        Option(
            name="exact",
            group=MODEL,
            in_config=True,
            help="in 16 bits on GPUs, the same tokens regardless of N, other prompts and earlier turns; long "
            "prompts are read more slowly",
        ),
        Option(name="trust_remote_code", group=MODEL, help="run the model code that the checkpoint brings along"),
        Option(name="verify", group=MODEL, help="compare the weight files with their checksums before loading"),
        Option(
            name="prompt",
            group=PROMPTS,
            metavar="TEXT",
            read=_some_text,
            help="answer this one prompt and exit; - reads the whole of standard input",
        ),
        Option(
            name="prompts_file",
            group=PROMPTS,
            metavar="FILE",
            read=_path,
            help="answer every prompt of a file: .txt (one a line), .jsonl or .parquet (with prompt or messages); "
            "- reads lines from standard input",
        ),
        Option(
            name="output_file",
            group=PROMPTS,
            metavar="FILE",
            read=_path,
            help="write the results to a .json or .jsonl file; run again to continue after an interruption",
        ),
        Option(
            name="steps",
            group=PROMPTS,
            metavar="A,B,...",
            read=_steps,
            help="answer every prompt with each of these steps of the run in turn, under the same settings: "
            "numbers, latest, base, or folders; a table at the end shows what changed",
        ),
        Option(
            name="use_chat_template",
            group=PROMPTS,
            negated=True,
            in_config=True,
            help="put prompts through the tokenizer's chat template (default: where it has one)",
        ),
        Option(
            name="chat_template",
            group=PROMPTS,
            metavar="NAME|FILE",
            read=_some_text,
            help="one of the checkpoint's named chat templates, or a file that holds one",
        ),
        Option(
            name="system",
            group=PROMPTS,
            metavar="TEXT",
            read=_text,
            in_config=True,
            help="the system prompt",
        ),
        Option(
            name="n",
            group=PROMPTS,
            metavar="COUNT",
            read=_count,
            help="samples for each prompt (default 1); also -n",
        ),
        Option(
            name="batch_size",
            group=PROMPTS,
            metavar="COUNT",
            read=_count,
            in_config=True,
            help="prompts decoded together (default: as many as pay and fit into memory)",
        ),
        Option(name="json", group=PROMPTS, help="print one JSON object a reply instead of its text"),
        Option(name="verbose_trace", group=PROMPTS, help="record how each block changed from pass to pass"),
        Option(name="rank_progress", group=PROMPTS, help="show what each copy of the model has done"),
        *(
            Option(
                name=row.name,
                group=DECODING,
                metavar="VALUE",
                read=_setting_reader(row.name),
                repeatable=isinstance(row.kind, Texts),
                help=f"{row.help}: {row.allowed} (default {setting_text(row.default)})",
            )
            for row in SETTINGS.values()
        ),
        Option(
            name="resume",
            group=CONVERSATION,
            metavar="NAME",
            read=_text,
            optional=True,
            help="continue the latest session, the named one, or an exported FILE.json",
        ),
        Option(
            name="join_timeout",
            group=HOSTS,
            metavar="SECONDS",
            read=_above_zero,
            in_config=True,
            help="how long to wait for the other hosts at the start (default 300)",
        ),
        Option(
            name="answer_timeout",
            group=HOSTS,
            metavar="SECONDS",
            read=_above_zero,
            in_config=True,
            help="how long a rank may give no sign of life before the program ends (default 60)",
        ),
        Option(
            name="replay",
            group=CONVERSATION,
            metavar="FILE",
            read=_path,
            help="decode every reply of a session (its name, or a .jsonl or .json file) again under its own "
            "record, with CHECKPOINT or else with the checkpoint that made it; exit code 6 if any differs",
        ),
        Option(name="debug", group=ALWAYS, help="show the traceback of an error"),
        Option(name="version", group=ALWAYS, help="print the version and exit"),
        Option(name="help", group=ALWAYS, help="print this help and exit"),
    )
}

# How the config file's values are read; those of the generation settings are read by their own table.
CONFIG_READERS: dict[str, Read] = {
    **{row.name: row.read or _switch for row in OPTIONS.values() if row.in_config},
    "editing_mode": _word("emacs", "vi"),
}
