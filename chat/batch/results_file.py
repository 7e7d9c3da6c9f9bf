"""The file that a run's results are written to, and going on with one. Knows no model and no engine.

`.jsonl` grows line by line; `.json` grows as `.partial` JSON Lines and is put in place at the end. A result that is
made before an earlier one waits in a file beside it (`.later`), so that whatever ends the run, nothing finished is
lost. No file is held in memory whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from chat.batch.earlier import Earlier, examine, lines_of_array, whole_lines
from chat.batch.jobs import Jobs, Maker
from chat.batch.records import Record
from chat.files import Locked, append_line, open_locked, write_whole
from dist.errors import ChatError, UsageError
from dist.plain_json import parse_json

# Results that have been passed on stay in the file beside until they are many more than those that wait.
MOST_STALE = 1000
APPENDED = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class ResultsFile:
    """The output file of a run, open for the results that are still to come.

    finished  how many of the run's jobs, from the first on, it holds already
    later     results after these, by place: replies that were finished before an earlier one was
    failed    how many of all these failed
    seed      the seed that they were sampled with, or None
    """

    def __init__(
        self, path: Path, jobs: Jobs, conditions: Mapping[str, Any], makers: Sequence[Maker] = (Maker(),)
    ) -> None:
        """Open `path`, go on where an interrupted run stopped, or begin.

        `conditions` are the settings and whatever else decides a reply; what is there must have been made under
        the same and its maker's own, but a seed of None takes over the one that is there. Raises UsageError for a
        file that is no results file, holds other prompts or was made under other conditions, ChatError if the disk
        refuses.
        """
        self._final = path
        self._growing = _growing(path)
        self._beside = _beside(self._growing)
        self._in_place = self._growing == path
        self._later_file: int | None = None
        self._stale = 0
        try:
            is_new = not self._growing.exists()
            self._file = _locked(self._growing, path)
            try:
                # Read under the lock: until now another run may have been writing.
                earlier = _examine(path, jobs, conditions, makers)
                # A finished .json is opened again: there is nothing to put in place unless jobs were added.
                reopened = not self._in_place and not os.fstat(self._file).st_size and path.exists()
                self._keep(earlier)
            except BaseException:
                if is_new and not os.fstat(self._file).st_size:
                    self._growing.unlink()
                os.close(self._file)
                raise
        except OSError as error:
            raise _refused(path, error) from error
        self.finished, self.later, self.failed = earlier.finished, earlier.later, earlier.failed
        self.seed: int | None = earlier.seed
        self._complete = reopened and self.finished == len(jobs)

    def records(self) -> Iterator[Record]:
        """The results that an earlier run finished, in order."""
        with self._growing.open("rb") as lines:
            for line in islice(lines, self.finished):
                yield parse_json(line)

    def add(self, record: Record) -> None:
        """Write the next result. Raises ChatError."""
        self._append(self._file, record, self._growing)

    def add_later(self, place: int, record: Record) -> None:
        """Keep a result that others are still to come before. Raises ChatError."""
        if self._later_file is None:
            try:
                self._later_file = os.open(self._beside, APPENDED, 0o666)
            except OSError as error:
                self._refuse(self._beside, error)
        self._append(self._later_file, {"place": place, "record": record}, self._beside)
        self._stale += 1

    def caught_up(self, waiting: Mapping[int, Record]) -> None:
        """Results that waited were added; these still wait. Raises ChatError."""
        if self._later_file is None or (waiting and self._stale < MOST_STALE + 4 * len(waiting)):
            return
        try:
            os.close(self._later_file)
            self._later_file, self._stale = None, 0
            self._keep_beside(waiting)
        except OSError as error:
            self._refuse(self._beside, error)

    def finish(self) -> None:
        """All results are there: put a `.json` file in place. Raises ChatError."""
        try:
            if not self._in_place:
                if not self._complete:
                    with self._growing.open("rb") as lines:
                        write_whole(self._final, _as_array(lines))
                self._growing.unlink()
            self._beside.unlink(missing_ok=True)
        except OSError as error:
            self._refuse(self._final, error)
        self.close()

    def close(self) -> None:
        """Let go of the file; a `.partial` and a `.later` stay for the next run."""
        if self._later_file is not None:
            os.close(self._later_file)
            self._later_file = None
        os.close(self._file)

    def _append(self, file: int, line: Mapping[str, Any], path: Path) -> None:
        try:
            append_line(file, line)
        except OSError as error:
            self._refuse(path, error)

    def _keep(self, earlier: Earlier) -> None:
        """Begin with what is there. Results after the first that is missing move to the file beside."""
        self._keep_beside(earlier.later)
        size = os.fstat(self._file).st_size
        if size > earlier.finished_bytes:
            os.ftruncate(self._file, earlier.finished_bytes)
        elif size < earlier.finished_bytes:  # a finished .json is opened again; its results go into a new .partial
            left = earlier.finished_bytes
            for line in lines_of_array(self._final):
                if left:
                    left -= len(line)
                    os.write(self._file, line)

    def _keep_beside(self, later: Mapping[int, Record]) -> None:
        if later:
            lines = (_line({"place": place, "record": record}) for place, record in later.items())
            write_whole(self._beside, lines)
        else:
            self._beside.unlink(missing_ok=True)

    def _refuse(self, path: Path, error: OSError) -> NoReturn:
        raise _refused(path, error) from error


def check_results(
    path: Path, jobs: Jobs, conditions: Mapping[str, Any], makers: Sequence[Maker] = (Maker(),)
) -> Earlier:
    """What of a run with these jobs is at `path`, which may go on with it; changes nothing.

    Conditions that are not named here are not compared. Raises UsageError, or ChatError if the disk refuses.
    """
    try:
        return _examine(path, jobs, conditions, makers, named_only=True)
    except OSError as error:
        raise _refused(path, error) from error


def _examine(
    path: Path, jobs: Jobs, conditions: Mapping[str, Any], makers: Sequence[Maker], *, named_only: bool = False
) -> Earlier:
    """What there is of an earlier run. Raises UsageError if this run cannot go on with it, and OSError."""
    beside = _beside(_growing(path))
    later = whole_lines(beside) if beside.exists() else ()
    return examine(path, _what_is_there(path), later, jobs, conditions, makers, named_only=named_only)


def _growing(path: Path) -> Path:
    """The file that grows while a run lasts."""
    return path if path.suffix.lower() == ".jsonl" else path.with_name(path.name + ".partial")


def _beside(growing: Path) -> Path:
    """The file of the results that wait for earlier ones."""
    return growing.with_name(growing.name + ".later")


def _locked(growing: Path, final: Path) -> int:
    """The file that grows, made if it is missing, which no other run writes from now on. Raises OSError."""
    try:
        return open_locked(growing, create=True, mode=0o666)
    except Locked:
        raise UsageError(
            f"Another run is writing {final}.", hint="Wait for it, or choose another output file."
        ) from None


def _what_is_there(path: Path) -> Iterable[bytes]:
    """JSON Lines of an earlier run, without an unfinished last line."""
    growing = _growing(path)
    if growing == path or not path.exists() or (growing.exists() and growing.stat().st_size):
        return whole_lines(growing, final=path) if growing.exists() else ()
    return lines_of_array(path)


def _as_array(lines: Iterable[bytes]) -> Iterator[bytes]:
    """JSON Lines as one array, a line each."""
    yield b"[\n"
    before = b""
    for line in lines:
        yield before + line.removesuffix(b"\n")
        before = b",\n"
    yield b"\n]\n"


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, default=str) + "\n").encode()


def _refused(path: Path, error: OSError) -> ChatError:
    return ChatError(
        f"The results cannot be written to {path}.",
        f"{error.strerror}.",
        "What was written before is kept; run the same command again to continue.",
    )
