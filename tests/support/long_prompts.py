"""Run by test_long_files.py: all prompts of a file, with results that are made up; tells what it took as JSON."""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from pathlib import Path

from chat.batch.jobs import Jobs
from chat.batch.prompts import read_prompts
from chat.batch.results_file import ResultsFile
from chat.start.options import parse_options

CONDITIONS = {"refine_iter": 2}


def main() -> None:
    path, output = sys.argv[1:]
    if path.endswith(".parquet"):
        import pyarrow.parquet  # noqa: F401
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jobs = Jobs(read_prompts(parse_options(["--prompts_file", path]), io.BytesIO()), 1)
    file = ResultsFile(Path(output), jobs, CONDITIONS)
    first, count = 0.0, 0
    for job in jobs:
        file.add({"prompt": job.given, "response": "r" * 50, "finish_reason": "stop", "settings": CONDITIONS})
        first, count = first or time.monotonic() - began, count + 1
    file.close()
    ResultsFile(Path(output), jobs, CONDITIONS).finish()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    whole = round(time.monotonic() - began, 1)
    print(json.dumps({"first_result_s": round(first, 2), "whole_s": whole, "grown_mib": grown, "results": count}))


if __name__ == "__main__":
    main()
