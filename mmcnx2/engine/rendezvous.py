"""How the processes of a run meet and part: after a restart, and at the end.

torchrun keeps one key-value store for all starts of a run, and processes write their addresses (gloo) or their group's
id (NCCL) under the same keys each time. A process that is quicker than its peers reads what the dead ones wrote and
waits for somebody who is not there: "timed out connecting: Connection refused", or a hang. Here every restart has keys
of its own.

At the end an interpreter stops threads of gloo and of torch in the middle of C++ code, and now and then that aborts a
run that had done everything (`terminate called without an active exception`, exit code 134).

Before they have met, only what started them says which of them a process is.

Touch this file for these three; which backend joins is run_config.py's business. Guarded by
tests/engine/test_rendezvous.py.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator

import torch
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

SCHEME = 'mmcnx2-restart'
RESTART_COUNT = 'TORCHELASTIC_RESTART_COUNT'


def init_method() -> str | None:
    """What `torch.distributed.init_process_group` takes as `init_method`: None (torch's own way) in a first start."""
    return f'{SCHEME}://' if os.environ.get(RESTART_COUNT, '0') not in ('', '0') else None


def rank_in_environment() -> int:
    """Number of this process among those of the run, as torchrun or Slurm say it; 0 without them."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')))


def _join(url: str, **options: object) -> Iterator[tuple[Store, int, int]]:
    """torch's `env://`, with the number of this restart before every key."""
    store, rank, world_size = next(rendezvous('env://', **options))
    yield PrefixStore(f'restart_{os.environ[RESTART_COUNT]}', store), rank, world_size


register_rendezvous_handler(SCHEME, _join)


def part(exit_code: int = 0) -> None:
    """Waits for the other processes, leaves the group and ends this process; without a group nothing happens.

    What is registered to happen at exit happens; the interpreter itself is not taken apart.
    """
    if not torch.distributed.is_initialized():
        return
    torch.distributed.barrier()  # launchers end the others as soon as one process has ended
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)
