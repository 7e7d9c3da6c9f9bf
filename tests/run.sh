#!/usr/bin/env bash
# Lint, types and tests; sets itself up on a fresh machine.
#
#   bash tests/run.sh [--fast | --all] [pytest's arguments]
#   PYTHON=/path/to/python bash tests/run.sh            the tests alone, in an environment of yours
#
# --fast leaves out what starts ranks, the program or a terminal, and what takes a second or more: its tests take less
# than a minute on two idle cores. Of tests marked `drawn` one case is drawn, by a seed that is printed; --all runs
# every case, and what takes minutes.
# Files run side by side, one worker a core; -n0 runs them in this process.
set -eu -o pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
# shellcheck source=chat/start/environment.sh
source "$root/chat/start/environment.sh"

selection=()
case ${1-} in
    --fast) selection=(--fast) && shift ;;
    --all) selection=(--all) && shift ;;
esac

# pytest compiles test files itself, for several seconds; kept, that is done once.
unset PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

if [[ -n ${PYTHON:-} ]]; then
    python=$PYTHON
else
    # shellcheck disable=SC2034 # shown when .venv cannot be made
    active_fault="the tests run in .venv; PYTHON=... names another"
    set_up chat demo test
    "$python" -m ruff check .
    "$python" -m ruff format --check .
    "$python" -m mypy
fi
exec "$python" -m pytest -n auto --maxprocesses=4 --dist=loadfile ${selection[@]+"${selection[@]}"} "$@"
