#!/usr/bin/env bash
# Test with several processes on one or more machines (torchrun); without CUDA the processes run on the CPU.
#     bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each. Touch it for launching only. Guarded by tests/test_tools.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dist_run.sh"
run_distributed test.py 'CONFIG CHECKPOINT GPUS [options of test.py]' 2 "$@"
