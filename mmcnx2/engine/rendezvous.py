"""How processes that torchrun has started again find each other, and not what their predecessors left.

torchrun keeps one key-value store for all starts of a run, and processes write their addresses (gloo) or their group's
id (NCCL) under the same keys each time. A process that is quicker than its peers reads what the dead ones wrote and
waits for somebody who is not there: "timed out connecting: Connection refused", or a hang. Here every restart has keys
of its own. Touch this file for that alone; which backend joins is run_config.py's business. Guarded by
tests/engine/test_rendezvous.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

SCHEME = 'mmcnx2-restart'
RESTART_COUNT = 'TORCHELASTIC_RESTART_COUNT'


def init_method() -> str | None:
    """What `torch.distributed.init_process_group` takes as `init_method`: None (torch's own way) in a first start."""
    return f'{SCHEME}://' if os.environ.get(RESTART_COUNT, '0') not in ('', '0') else None


def _join(url: str, **options: object) -> Iterator[tuple[Store, int, int]]:
    """torch's `env://`, with the number of this restart before every key."""
    store, rank, world_size = next(rendezvous('env://', **options))
    yield PrefixStore(f'restart_{os.environ[RESTART_COUNT]}', store), rank, world_size


register_rendezvous_handler(SCHEME, _join)
