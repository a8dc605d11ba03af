# Read by dist_train.sh and dist_test.sh, not run by itself: start a tool under torchrun, in the OpenMMLab way.
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT (default: a free port), PYTHON; MAX_RESTARTS (0): so many times all
# processes are started again when one of them fails, and training goes on from its newest checkpoint. Guarded by tests/test_tools.py.

tools_folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

# The interpreter: $PYTHON, else the active one when it has mmengine, else that of the environment of `make env`.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("mmengine"))' 2>/dev/null; then
        echo python
    elif [ -f "$tools_folder/make_env.py" ] && [ -x "$(python3 "$tools_folder/make_env.py" --print-interpreter 2>/dev/null)" ]; then
        python3 "$tools_folder/make_env.py" --print-interpreter
    else
        echo 'error: no interpreter with mmengine: activate the environment, set PYTHON, or run `make env`' >&2
        return 1
    fi
}

# run_distributed TOOL USAGE NUMBER_OF_ARGUMENTS_BEFORE_GPUS ARGUMENTS...
run_distributed() {
    local tool="$1" usage="$2" num_before="$3"
    shift 3
    if [ $# -le "$num_before" ] || ! [[ "${*:num_before+1:1}" =~ ^[1-9][0-9]*$ ]]; then
        echo "error: usage: bash $0 $usage, where GPUS is the number of processes on this machine" >&2
        exit 1
    fi
    local python processes="${*:num_before+1:1}" nodes="${NNODES:-1}" port="${PORT:-}"
    python="$(find_python)"
    if [ -z "$port" ]; then
        if [ "$nodes" -gt 1 ]; then
            port=29500  # the machines must agree
        else
            port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
        fi
    fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"  # per process
    # a minute for saving, when they are told to leave
    exec "$python" "$tools_folder/launch_processes.py" \
        --max_restarts="${MAX_RESTARTS:-0}" --shutdown_timeout=60 \
        --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
        --nnodes="$nodes" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$port" \
        "$tools_folder/$tool" "${@:1:num_before}" --launcher pytorch "${@:num_before+2}"
}
