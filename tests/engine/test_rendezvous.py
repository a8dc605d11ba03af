"""Two processes that are started twice on one key-value store, as torchrun does it, the second time rank 1 first."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from mmengine.config import Config
from torch.distributed import TCPStore

from mmcnx2.engine import rendezvous, run_config

ROOT = Path(__file__).resolve().parents[2]
JOIN = """
import atexit, sys, datetime, torch
from mmcnx2.engine import rendezvous
print('imported', flush=True)
sys.stdin.readline()
torch.distributed.init_process_group(
    'gloo', init_method=rendezvous.init_method(), timeout=datetime.timedelta(seconds=float(sys.argv[1])))
value = torch.tensor(1.0 + torch.distributed.get_rank())
torch.distributed.all_reduce(value)
atexit.register(print, 'at exit', flush=True)
print('sum', value.item())
rendezvous.part(3)
print('still there')
"""


@pytest.mark.parametrize(
    ('environment', 'rank'), [({}, 0), (dict(RANK='2', SLURM_PROCID='5'), 2), (dict(SLURM_PROCID='5'), 5)]
)
def test_a_process_knows_its_number_before_it_has_met_the_others(environment, rank, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rendezvous.rank_in_environment() == rank


@pytest.fixture
def store():
    return TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))


def start(store, rank: int, restart: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(store.port),
        'RANK': str(rank),
        'WORLD_SIZE': '2',
        'TORCHELASTIC_USE_AGENT_STORE': 'True',
        'TORCHELASTIC_RESTART_COUNT': str(restart),
    }
    return subprocess.Popen(
        [sys.executable, '-c', JOIN, '60'],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_quick_process_waits_for_its_peer_and_not_for_the_dead_one(store):
    for restart in (0, 1):
        processes = [start(store, rank, restart) for rank in (0, 1)]
        for process in processes:
            assert process.stdout.readline() == 'imported\n', process.communicate()
        processes[1].stdin.write('\n')
        processes[1].stdin.flush()
        time.sleep(2 * restart)  # rank 1 looks for the address of rank 0, which writes it only now
        outputs = [processes[0].communicate('\n', timeout=120)[0], processes[1].communicate(timeout=120)[0]]
        assert [output.splitlines()[-2:] for output in outputs] == [['sum 3.0', 'at exit']] * 2, outputs
        assert [process.returncode for process in processes] == [3, 3]


def test_on_a_gpu_the_runner_is_told(monkeypatch):
    monkeypatch.setattr(run_config, 'get_device', lambda: 'cuda')
    cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(backend='nccl'))))
    monkeypatch.setenv(rendezvous.RESTART_COUNT, '0')
    run_config.start_distributed(cfg)
    assert cfg.env_cfg.dist_cfg == dict(backend='nccl')
    monkeypatch.setenv(rendezvous.RESTART_COUNT, '2')
    run_config.start_distributed(cfg)
    assert cfg.env_cfg.dist_cfg == dict(backend='nccl', init_method='mmcnx2-restart://')
