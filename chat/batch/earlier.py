"""What an earlier run left of its results, read and compared with this run line by line. Writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from chat.batch.jobs import Job, Jobs, Maker
from chat.batch.records import CANCELLED, ERROR, Record
from chat.files import has_lone_surrogates
from dist.errors import UsageError
from dist.plain_json import parse_json
from dist.settings import GenerationSettings

# How every line of results begins, as far as a torn last line goes.
HEAD = b'{"prompt": '
WANTED = ("prompt", "response", "finish_reason", "settings")


@dataclass(slots=True, kw_only=True)
class Earlier:
    """Results that this run goes on with.

    finished        how many there are without a gap, from the first job on
    finished_bytes  how long their lines are together
    later           those after the first gap, by place
    failed          how many of all these failed
    seed            the seed that they were sampled with, or None
    """

    finished: int = 0
    finished_bytes: int = 0
    later: dict[int, Record] = field(default_factory=dict)
    failed: int = 0
    seed: int | None = None


def examine(
    path: Path,
    lines: Iterable[bytes],
    later: Iterable[bytes],
    jobs: Jobs,
    conditions: Mapping[str, Any],
    makers: Sequence[Maker],
    *,
    named_only: bool,
) -> Earlier:
    """The results in `lines`, in the order of the jobs, and those in `later`, which name their places.

    To the `conditions` come each maker's own. Raises UsageError where a result is not this run's; conditions that
    are not named here are compared unless `named_only`, or the maker is gone.
    """
    same = [_Conditions(conditions, one, path, named_only) for one in makers]
    beside = dict(_placed(line, path) for line in later)
    found = Earlier()
    gap = False
    number = 0
    for place, (line, job) in enumerate(zip_longest(lines, jobs)):
        if line is None and place > max(beside, default=-1):
            break
        number = place + 1
        record = None if line is None else _record(line, path)
        for one in filter(None, (record, beside.get(place))):
            same[-1 if job is None else job.step].check(one["settings"])
            _check_prompt(one, job, len(jobs), place, path)
        if place == 0 and record is not None:
            found.seed = record["settings"].get("seed")
        kept = next((one for one in (record, beside.get(place)) if one and one["finish_reason"] != CANCELLED), None)
        if kept is None:
            gap = True
            continue
        found.failed += kept["finish_reason"] == ERROR
        if record is kept and line is not None and not gap:
            found.finished, found.finished_bytes = place + 1, found.finished_bytes + len(line)
        else:
            gap = True
            found.later[place] = kept
    if found.seed is None:
        found.seed = next((one["settings"].get("seed") for one in found.later.values()), None)
    number = max(number, max(beside, default=-1) + 1)
    if number > len(jobs):
        raise other_run(path, f"It holds {number} results, and this run has {len(jobs)} to make.")
    return found


def whole_lines(path: Path, final: Path | None = None) -> Iterator[bytes]:
    """The lines of a file but for an unfinished last one; with `final`, that must be the beginning of a result.

    Raises UsageError for one that is not, which names `final`, and OSError.
    """
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
            elif final is not None and not (line.startswith(HEAD) or HEAD.startswith(line)):
                raise foreign(final)


def lines_of_array(path: Path) -> Iterator[bytes]:
    """The results of a finished `.json` file as lines. Raises UsageError and OSError."""
    if _is_line_by_line(path):
        with path.open("rb") as file:
            next(file)
            for line in file:
                if line != b"]\n":
                    yield line.removesuffix(b"\n").removesuffix(b",") + b"\n"
        return
    # Written again by another program: it has to be read whole.
    try:
        records = parse_json(path.read_bytes())
    except ValueError:
        raise foreign(path) from None
    if not isinstance(records, list):
        raise foreign(path)
    for record in records:
        text = json.dumps(record, ensure_ascii=False)
        if has_lone_surrogates(text):
            raise foreign(path)
        yield f"{text}\n".encode()


def foreign(path: Path) -> UsageError:
    return UsageError(
        f"{path} already exists and is not a results file.", hint="Move it away, or choose another output file."
    )


def other_run(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} holds results of another run.", why, "Move it away, or choose another output file.")


def _is_line_by_line(path: Path) -> bool:
    """Whether a `.json` file is as this program writes it."""
    with path.open("rb") as file:
        first = [file.readline(), file.readline()]
    try:
        parse_json(first[1].rstrip(b",\n"))
    except ValueError:
        return False
    return first[0] == b"[\n" and first[1].startswith(HEAD)


def _record(line: bytes, path: Path) -> Record:
    try:
        record = parse_json(line)
    except ValueError:
        raise foreign(path) from None
    return _checked(record, path)


def _placed(line: bytes, path: Path) -> tuple[int, Record]:
    try:
        value = parse_json(line)
        place, record = value["place"], value["record"]
    except (ValueError, TypeError, KeyError):
        raise foreign(path) from None
    if not isinstance(place, int) or isinstance(place, bool) or place < 0:
        raise foreign(path)
    return place, _checked(record, path)


def _checked(record: Any, path: Path) -> Record:
    if not isinstance(record, dict) or any(name not in record for name in WANTED):
        raise foreign(path)
    return record


def _check_prompt(record: Record, job: Job | None, jobs: int, place: int, path: Path) -> None:
    if job is not None and (record["prompt"] != as_json(job.given) or record.get("sample", 0) != job.sample):
        raise other_run(path, f"Its result {place + 1} is for another prompt than this run's.")


# The values of settings in results of versions that did not have them.
DEFAULTS = json.loads(json.dumps(GenerationSettings().as_dict()))


class _Conditions:
    """What decides a maker's replies now, to be compared with what did."""

    def __init__(self, conditions: Mapping[str, Any], maker: Maker, path: Path, named_only: bool) -> None:
        self._now = as_json({**conditions, **maker.conditions})
        self._whose = "" if maker.name is None else f", of step {maker.name},"
        self._path = path
        self._named_only = named_only or maker.gone

    def check(self, recorded: Any) -> None:
        """Raises UsageError, which names the differences."""
        if not isinstance(recorded, dict):
            raise foreign(self._path)
        now = self._now
        recorded = {**{name: value for name, value in DEFAULTS.items() if name in now}, **recorded}
        if now.get("seed") is None:
            now = {**now, "seed": recorded.get("seed")}
        names = now if self._named_only else {**now, **recorded}
        differences = [
            f"{name} was {recorded.get(name)!r} and is {now.get(name)!r} now"
            for name in names
            if now.get(name) != recorded.get(name)
        ]
        if differences:
            raise other_run(self._path, f"In it{self._whose} {'; '.join(differences)}.")


def as_json(value: Any) -> Any:
    """`value` as it would be read back."""
    return value if isinstance(value, str) else parse_json(json.dumps(value, default=str))
