#!/usr/bin/env bash
# Train through Slurm: one task per GPU, started by srun.
#     bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# Environment: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON. Touch it for launching only. Guarded by tests/test_tools.py.
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
# shellcheck disable=SC2086  # SRUN_ARGS are several words
exec srun --partition="$partition" --job-name="$job_name" --gres="gpu:$gpus_per_node" --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$tools_folder/train.py" "$config" --work-dir "$work_dir" --launcher slurm "${@:5}"
