"""Watches where the time of a start goes, from the first moment of a rank (tests/bench/measure_start.py)."""

import os
import sys

# A rank, and neither what starts ranks nor what the start script asks before.
if "chat" in sys.orig_argv[:4] and ("RANK" in os.environ) == (os.environ["DLLM_START_RANKS"] != "1"):
    import measure_start

    measure_start.watch_this_process()
