"""Watches where the time of a start goes, from the first moment of each process (tests/bench/measure_start.py)."""

import measure_start

measure_start.watch_this_process()
