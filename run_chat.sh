#!/usr/bin/env bash
# Talk to a verl checkpoint: check the arguments, find or make the environment, start the ranks, put the terminal back.
#
#   bash run_chat.sh [COUNT] [CHECKPOINT] [PROMPT] [options]        bash run_chat.sh --help
set -u -o pipefail

# The script may be called by a symbolic link from anywhere.
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(cd -- "$here" && pwd -P) || exit 1
# shellcheck source=chat/start/environment.sh
source "$root/chat/start/environment.sh"

# The program is found wherever it is started from, and a stray `chat.py` there cannot take its place.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

job='' job_name='' reaper='' saved_mode='' interrupted=0

# --- Arguments -------------------------------------------------------------------------------------------

parse_arguments() { # sets count and options
    count=auto options=()
    if [[ ${1-} =~ ^[0-9]+$ || ${1-} == auto ]]; then
        count=$1
        shift
    fi
    if (($#)) && ! is_option "$1"; then
        options+=("--checkpoint_dir=$1")
        shift
    fi
    if (($#)) && ! is_option "$1"; then
        options+=("--prompt=$1")
        shift
    fi
    if (($#)) && ! is_option "$1"; then
        fail 2 "Unexpected argument: $1." "COUNT, CHECKPOINT and PROMPT come first, then options only." \
            "Put a prompt of several words in quotes."
    fi
    options+=("$@")
    [[ $count == auto ]] && return
    [[ $count =~ ^0*[1-9][0-9]{0,3}$ ]] ||
        fail 2 "COUNT cannot be $count." "It is the number of processes: 1 to 9999, or auto."
    count=$((10#$count))
}

is_option() { [[ $1 == --* || $1 == -h || $1 == -n ]]; }

wants_help() {
    local word
    for word in ${options[@]+"${options[@]}"}; do
        [[ $word != --help && $word != -h && $word != --version ]] || return 0
    done
    return 1
}

check_options() { # sets model to `demo` or `checkpoint`; refuses bad options before anything is set up
    local code
    model=$("$any_python" -m chat.start.preflight ${options[@]+"${options[@]}"})
    code=$?
    ((code == 0)) || exit "$code"
    # The user wants another step than the run's newest one; the last of several --checkpoint_dir counts.
    [[ $model != *$'\n'* ]] || options+=("--checkpoint_dir=${model#*$'\n'}")
    model=${model%%$'\n'*}
}

# --- Environment -----------------------------------------------------------------------------------------

choose_python() { # sets python, and any_python for what needs no packages
    python=
    find_active
    if [[ -z $any_python ]]; then
        find_base || fail 1 "No Python $python_range was found: $active_fault." \
            "Install one (for example: apt-get install python3 python3-venv) or activate an environment that has it."
        any_python=$base
    fi
}

ensure_python() {
    [[ -z $python ]] || return 0
    say "Using $venv: $active_fault."
    set_up chat
    check_python "$python" || fail 1 "$venv cannot be used either: ${verdict##*$'\t'}." \
        "Activate an environment whose torch fits this machine, or use the CPU: CUDA_VISIBLE_DEVICES= bash run_chat.sh"
}

ensure_demo() {
    local code preparer=$python
    ! "$python" -m chat.demo --check >/dev/null || return 0
    if ! "$python" -m chat.demo --can-prepare; then
        [[ $python == "$venv"/* ]] || say "$python lacks what makes the embedded model; $venv makes it."
        set_up_beside demo
        preparer=$venv/bin/python
    fi
    "$preparer" -m chat.demo >/dev/null
    code=$?
    ((code == 0)) || exit "$code"
}

set_up_beside() { # set up, but the chat keeps its Python
    local chosen=$python
    set_up chat "$@"
    python=$chosen
}

visible_gpus() { # prints how many
    local shown=${CUDA_VISIBLE_DEVICES-} nodes
    nodes=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l)
    if ! has_gpus; then
        echo 0
    elif [[ -n $shown ]]; then
        tr ',' '\n' <<<"$shown" | grep -c .
    elif ((nodes)); then
        echo "$nodes"
    else
        nvidia-smi -L | grep -c '^GPU'
    fi
}

settle_count() {
    local gpus
    gpus=$(visible_gpus)
    if [[ $count == auto ]]; then
        count=$((gpus > 0 ? gpus : 1))
    elif ((gpus > 0 && count > gpus)); then
        fail 2 "$count processes need $count GPUs, and $gpus can be seen." \
            "Take COUNT $gpus or less, or use the CPU: CUDA_VISIBLE_DEVICES= bash run_chat.sh $count ..."
    fi
}

# --- The run ---------------------------------------------------------------------------------------------

make_run_dir() { # one folder a run for logs and the exit code; the newest 20 are kept
    local logs=${XDG_STATE_HOME-} folder folders=()
    [[ $logs == /* ]] || logs=$HOME/.local/state  # the XDG rules say that a relative path is to be ignored
    logs+=/dllm-chat/logs
    DLLM_RUN_DIR=$logs/$(date +%Y%m%d-%H%M%S)-$$
    (umask 077 && mkdir -p -- "$DLLM_RUN_DIR") 2>/dev/null || DLLM_RUN_DIR=$(mktemp -d) ||
        fail 1 "No folder for logs can be made in $logs." "Set XDG_STATE_HOME to a folder that can be written."
    export DLLM_RUN_DIR DLLM_LAUNCHER_PID=$$
    for folder in "$logs"/*-*-*; do
        # A folder whose run is still alive stays.
        [[ ! -d $folder ]] || kill -0 "${folder##*-}" 2>/dev/null || folders+=("$folder")
    done
    ((${#folders[@]} < 20)) || rm -rf -- "${folders[@]:0:${#folders[@]}-19}"
}

set_variables() {
    local cores
    cores=$(nproc 2>/dev/null || echo 1)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / count > 0 ? cores / count : 1))}
    # Threads that spin long while they wait made replies 6 to 12 times slower on 2 cores that others used too;
    # threads that sleep at once are slower on idle ones (tests/MEASURED.md).
    [[ ${OMP_WAIT_POLICY-}${GOMP_SPINCOUNT-} ]] || export GOMP_SPINCOUNT=1000
    export TOKENIZERS_PARALLELISM=false TORCH_CPP_LOG_LEVEL=ERROR HF_HUB_OFFLINE=1
    keep_compiled
}

# Some images ship packages without .pyc files and forbid writing them: every start would compile all of torch again,
# which takes longer than everything else. They are then kept among this program's own files.
keep_compiled() {
    local find='import importlib.util as u, os; f = u.find_spec("torch").origin; c = u.cache_from_source(f)
print("there" if os.path.exists(c) else "missing")'
    [[ ${PYTHONDONTWRITEBYTECODE-} && ! ${PYTHONPYCACHEPREFIX-} ]] || return 0
    [[ $("$python" -c "$find" 2>/dev/null) == missing ]] || return 0
    unset PYTHONDONTWRITEBYTECODE
    export PYTHONPYCACHEPREFIX=${XDG_CACHE_HOME:-$HOME/.cache}/dllm-chat/compiled
}

start_job() {
    local command
    if ((count == 1)) && [[ ${NNODES:-1} == 1 ]]; then
        job_name="The program"
        command=("$python" -m chat ${options[@]+"${options[@]}"})
    else
        job_name=torchrun
        command=("$python" -m chat.start.launch "$DLLM_RUN_DIR/torchrun.log" "$count" ${options[@]+"${options[@]}"})
    fi
    # In the background, since bash puts off traps while a foreground child runs; `<&0` keeps the keyboard.
    "${command[@]}" <&0 &
    job=$!
}

wait_for_job() { # sets code
    while :; do
        # bash would report a killed child in words of its own.
        wait "$job" 2>/dev/null
        code=$?
        # A trapped signal ends `wait` early; the job is over only when it is gone.
        kill -0 "$job" 2>/dev/null || break
    done
    job=
}

# A background child starts with SIGINT ignored, so Ctrl-C while loading comes here. After that it is a plain byte.
# shellcheck disable=SC2317 # called by traps
end_job() { # SIGNAL-CODE
    interrupted=$1
    [[ -n $job ]] || exit "$interrupted"
    local children
    children=$(pgrep -P "$job" 2>/dev/null | tr '\n' ' ')
    kill -CONT "$job" 2>/dev/null
    kill -TERM "$job" 2>/dev/null
    # torchrun waits 30 s for a stuck rank; a user does not.
    # shellcheck disable=SC2086 # one word a process
    (
        trap '' INT TERM HUP
        sleep 5
        kill -KILL "$job" $children
    ) >/dev/null 2>&1 </dev/null &
    reaper=$!
    disown "$reaper"  # so that bash does not report its end
}

# While a list of prompts is answered, rank 0 leaves its process id: it ends the list itself, after the present pass.
# shellcheck disable=SC2317 # called by a trap
interrupt_job() {
    local rank0
    rank0=$(cat "${DLLM_RUN_DIR-}/interruptible" 2>/dev/null)
    if [[ -n $job && $rank0 =~ ^[0-9]+$ ]] && kill -INT "$rank0" 2>/dev/null; then
        interrupted=130
    else
        end_job 130
    fi
}

# shellcheck disable=SC2317 # called by a trap
put_terminal_back() {
    trap '' TTOU INT
    [[ -z $reaper ]] || kill -KILL "$reaper" 2>/dev/null
    [[ -z $saved_mode ]] || stty "$saved_mode" 2>/dev/null
}

exit_code() { # prints the run's exit code; rank 0 leaves its own in a file, since torchrun makes 1 of every failure
    local status ending last rank0=here
    status=$(cat "$DLLM_RUN_DIR/status" 2>/dev/null)
    # How this host's ranks ended, in words: of a host without rank 0, or of a rank 0 that was killed.
    ending=$(cat "$DLLM_RUN_DIR/ending" 2>/dev/null)
    if [[ -z $ending ]] && ((code == 137)); then
        ending="$job_name was killed (SIGKILL); out of memory?"
    fi
    if [[ ${NNODES:-1} != 1 && ${NODE_RANK:-0} != 0 && $interrupted == 0 && -n $ending ]]; then
        say "$ending"
        rank0=elsewhere
    fi
    if [[ $status =~ ^[0-9]+$ ]]; then
        echo "$status"
    elif ((interrupted)); then
        echo "$interrupted"
    elif ((code == 0)); then
        echo 0
    else
        # The line of progress of a rank 0 that was killed while it loaded.
        [[ -s $DLLM_RUN_DIR/continue || ! -t 2 || ${TERM:-dumb} == dumb || ${NO_COLOR-} ]] || printf '\r\033[K' >&2
        if [[ -n $ending ]]; then
            [[ $rank0 == elsewhere ]] || say "$ending"
        else
            last=$(grep -h . "$DLLM_RUN_DIR/rank0.log" 2>/dev/null | tail -n 1)
            say "$job_name ended with code $code, and rank 0 left no word of why." ${last:+"Its log ends: $last"}
        fi
        # How to go on with a conversation, which rank 0 had written down before it was killed.
        [[ ! -s $DLLM_RUN_DIR/continue ]] || say "$(<"$DLLM_RUN_DIR/continue")"
        say "The logs are in $DLLM_RUN_DIR"
        echo 5
    fi
}

main() {
    parse_arguments "$@"
    choose_python
    if wants_help; then
        exec "$any_python" -m chat ${options[@]+"${options[@]}"}
    fi
    check_options
    # A descriptor that is closed would be that of the next file to be opened.
    [[ -e /proc/self/fd/0 ]] || exec </dev/null
    [[ -e /proc/self/fd/1 ]] || exec >/dev/null
    [[ -e /proc/self/fd/2 ]] || exec 2>/dev/null
    # shellcheck disable=SC2034 # read in put_terminal_back
    [[ ! -t 0 ]] || saved_mode=$(stty -g 2>/dev/null)
    trap put_terminal_back EXIT
    trap interrupt_job INT
    trap 'end_job 143' TERM
    trap 'end_job 129' HUP

    ensure_python
    [[ $model != demo ]] || ensure_demo
    settle_count
    make_run_dir
    set_variables
    say "Starting $count process$([[ $count == 1 ]] || echo es) with $python (torch ${verdict##*$'\t'})."
    start_job
    wait_for_job
    trap '' PIPE  # the exit code is handed back though nobody reads the words
    exit "$(exit_code)"
}

main "$@"
