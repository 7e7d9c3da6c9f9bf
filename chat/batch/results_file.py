"""The file that a run's results are written to, and going on with one. Knows no model and no engine.

`.jsonl` grows line by line; `.json` grows as `.partial` JSON Lines and is put in place at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chat.batch.jobs import Job
from chat.batch.records import CANCELLED, ERROR, Record
from chat.files import Locked, append_line, open_locked, write_whole
from dist.errors import ChatError, UsageError


class ResultsFile:
    """The output file of a run, open for the results that are still to come.

    finished  how many of the run's jobs, from the first on, it holds already
    later     results after these, by place: replies that were finished when an earlier one was interrupted
    failed    how many of all these failed
    seed      the seed that they were sampled with, or None
    """

    def __init__(self, path: Path, jobs: Sequence[Job], conditions: Mapping[str, Any]) -> None:
        """Open `path`, go on where an interrupted run stopped, or begin.

        `conditions` are the settings and whatever else decides a reply; what is there must have been made under
        the same, but a seed of None takes over the one that is there. Raises UsageError for a file that is no
        results file, holds other prompts or was made under other conditions, ChatError if the disk refuses.
        """
        self._final = path
        self._growing = _growing(path)
        self._in_place = self._growing == path
        try:
            is_new = not self._growing.exists()
            self._file = _locked(self._growing, path)
            try:
                # Read under the lock: until now another run may have been writing.
                start = _what_is_there(path)
                records, lengths = _parse(start, path)
                done = _check(records, jobs, conditions, path)
                self.finished = next((place for place in range(len(records)) if place not in done), len(records))
                # A finished .json is opened again: there is nothing to put in place unless jobs were added.
                reopened = not self._in_place and not os.fstat(self._file).st_size and path.exists()
                self._keep(start[: sum(lengths[: self.finished])])
            except BaseException:
                if is_new and not os.fstat(self._file).st_size:
                    self._growing.unlink()
                os.close(self._file)
                raise
        except OSError as error:
            raise _refused(path, error) from error
        self.later = {place: record for place, record in done.items() if place > self.finished}
        self.failed = sum(record["finish_reason"] == ERROR for record in done.values())
        self.seed: int | None = records[0]["settings"].get("seed") if records else None
        self._complete = reopened and self.finished == len(jobs)

    def add(self, record: Record) -> None:
        """Write the next result. Raises ChatError."""
        try:
            append_line(self._file, record)
        except OSError as error:
            raise _refused(self._growing, error) from error

    def finish(self) -> None:
        """All results are there: put a `.json` file in place. Raises ChatError."""
        try:
            if not self._in_place:
                lines = self._growing.read_bytes().splitlines()
                if not self._complete:
                    write_whole(self._final, b"[\n" + b",\n".join(lines) + b"\n]\n")
                self._growing.unlink()
        except OSError as error:
            raise _refused(self._final, error) from error
        self.close()

    def close(self) -> None:
        """Let go of the file; a `.partial` stays for the next run."""
        os.close(self._file)

    def _keep(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        if size > len(data):
            os.ftruncate(self._file, len(data))
        elif size < len(data):  # a finished .json is opened again; its results go into a new .partial
            os.write(self._file, data)


def check_results(path: Path, jobs: Sequence[Job], conditions: Mapping[str, Any]) -> None:
    """Look whether a run with these jobs may go on with what is at `path`, and change nothing.

    Conditions that are not named here are not compared. Raises UsageError, or ChatError if the disk refuses.
    """
    try:
        records, _ = _parse(_what_is_there(path), path)
    except OSError as error:
        raise _refused(path, error) from error
    _check(records, jobs, conditions, path, named_only=True)


def _growing(path: Path) -> Path:
    """The file that grows while a run lasts."""
    return path if path.suffix.lower() == ".jsonl" else path.with_name(path.name + ".partial")


def _locked(growing: Path, final: Path) -> int:
    """The file that grows, made if it is missing, which no other run writes from now on. Raises OSError."""
    try:
        return open_locked(growing, create=True, mode=0o666)
    except Locked:
        raise UsageError(
            f"Another run is writing {final}.", hint="Wait for it, or choose another output file."
        ) from None


def _what_is_there(path: Path) -> bytes:
    """JSON Lines of an earlier run, without an unfinished last line."""
    growing = _growing(path)
    data = growing.read_bytes() if growing.exists() else b""
    if data or growing == path or not path.exists():
        return data[: data.rfind(b"\n") + 1]
    return _lines_of_array(path)


def _lines_of_array(path: Path) -> bytes:
    try:
        records = json.loads(path.read_bytes())
    except ValueError:
        raise _foreign(path) from None
    if not isinstance(records, list):
        raise _foreign(path)
    return b"".join((json.dumps(record, ensure_ascii=False) + "\n").encode() for record in records)


def _parse(data: bytes, path: Path) -> tuple[list[Record], list[int]]:
    """The records and the length in bytes of each one's line."""
    lines = data.splitlines(keepends=True)
    records: list[Record] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            raise _foreign(path) from None
        wanted = ("prompt", "response", "finish_reason", "settings")
        if not isinstance(record, dict) or any(name not in record for name in wanted):
            raise _foreign(path)
        records.append(record)
    return records, [len(line) for line in lines]


def _check(
    records: Sequence[Record],
    jobs: Sequence[Job],
    conditions: Mapping[str, Any],
    path: Path,
    *,
    named_only: bool = False,
) -> dict[int, Record]:
    """The records by place but for the cancelled ones, once all proved to be this run's. Raises UsageError."""
    done: dict[int, Record] = {}
    for place, record in enumerate(records):
        _same_conditions(record["settings"], conditions, path, named_only)
        if place >= len(jobs):
            raise _other(path, f"It holds {len(records)} results, and this run has {len(jobs)} to make.")
        job = jobs[place]
        if record["prompt"] != _as_json(job.given) or record.get("sample", 0) != job.sample:
            raise _other(path, f"Its result {place + 1} is for another prompt than this run's.")
        if record["finish_reason"] != CANCELLED:
            done[place] = record
    return done


def _same_conditions(recorded: Any, conditions: Mapping[str, Any], path: Path, named_only: bool) -> None:
    now = _as_json(dict(conditions))
    if not isinstance(recorded, dict):
        raise _foreign(path)
    if now.get("seed") is None:
        now["seed"] = recorded.get("seed")
    names = now if named_only else {**now, **recorded}
    differences = [
        f"{name} was {recorded.get(name)!r} and is {now.get(name)!r} now"
        for name in names
        if now.get(name) != recorded.get(name)
    ]
    if differences:
        raise _other(path, f"In it {'; '.join(differences)}.")


def _as_json(value: Any) -> Any:
    """`value` as it would be read back."""
    return json.loads(json.dumps(value, default=str))


def _foreign(path: Path) -> UsageError:
    return UsageError(
        f"{path} is there already and is not a results file.", hint="Move it away, or choose another output file."
    )


def _other(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} holds results of another run.", why, "Move it away, or choose another output file.")


def _refused(path: Path, error: OSError) -> ChatError:
    return ChatError(
        f"The results cannot be written to {path}.",
        f"{error.strerror}.",
        "What was written before is kept; run the same command again to go on.",
    )
