#!/usr/bin/env bash
# Train through Slurm: one task per GPU, started by srun.
#     bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# A run that is told to leave (pre-emption, or 2 minutes before its time is over) saves and ends with exit code 75; then
# it is queued again and goes on. Inside a batch job (#SBATCH --requeue, #SBATCH --signal=USR1@120) that is the job, by
# scontrol requeue; elsewhere srun is started again.
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON; REQUEUE (1; 0: end with 75 instead);
# SIGNAL (USR1@120: what srun sends so many seconds before the end). Touch it for launching only. Guarded by
# tests/test_tools.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dist_run.sh"
if [ $# -lt 4 ]; then
    echo "error: usage: bash $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]" >&2
    exit 1
fi
partition="$1" job_name="$2" config="$3" work_dir="$4"
gpus="${GPUS:-8}" gpus_per_node="${GPUS_PER_NODE:-8}"
if [ "$gpus" -lt "$gpus_per_node" ]; then gpus_per_node="$gpus"; fi
python="$(find_python)"
arguments=("${@:5}")
# A batch job that starts again resumes by itself: tools/train.py looks at SLURM_RESTART_COUNT
while true; do
    code=0
    # shellcheck disable=SC2086  # SRUN_ARGS are several words
    srun --partition="$partition" --job-name="$job_name" --gres="gpu:$gpus_per_node" --ntasks="$gpus" \
        --ntasks-per-node="$gpus_per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
        --signal="${SIGNAL:-USR1@120}" ${SRUN_ARGS:-} \
        "$python" -u "$tools_folder/train.py" "$config" --work-dir "$work_dir" --launcher slurm "${arguments[@]}" &
    srun_pid=$!
    # told to leave itself, this script passes it on and waits for the end
    trap 'kill -USR1 "$srun_pid" 2>/dev/null || true' USR1
    trap 'REQUEUE=0; kill -TERM "$srun_pid" 2>/dev/null || true' TERM INT  # somebody wants it to end
    wait "$srun_pid" || code=$?
    while kill -0 "$srun_pid" 2>/dev/null; do  # a signal had interrupted the waiting
        code=0
        wait "$srun_pid" || code=$?
    done
    trap - USR1 TERM INT
    if [ "$code" -ne 75 ] || [ "${REQUEUE:-1}" = 0 ]; then
        exit "$code"
    fi
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        echo "The run has saved and makes room; job $SLURM_JOB_ID is queued again" >&2
        scontrol requeue "$SLURM_JOB_ID"
        exit 75
    fi
    echo 'The run has saved and makes room; it is queued again' >&2
    arguments=("${@:5}" --resume)
done
