"""The logged loss of two processes is their mean."""

import torch
import torch.multiprocessing as mp

from mmcnx2.engine import rendezvous
from mmcnx2.engine.average_loss_hook import AverageLossHook


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    outputs = {'loss': torch.tensor(1.0 + 2 * rank), 'grad_norm': 5.0, 'map': torch.full((2,), float(rank))}
    AverageLossHook().after_train_iter(None, 0, outputs=outputs)
    torch.save(outputs, f'{folder}/{rank}.pth')
    rendezvous.part()


def test_mean_over_two_processes(tmp_path):
    mp.start_processes(_process, args=(str(tmp_path),), nprocs=2, start_method='spawn')
    for rank in (0, 1):
        outputs = torch.load(tmp_path / f'{rank}.pth')
        assert outputs['loss'].item() == 2
        assert outputs['grad_norm'] == 5
        assert outputs['map'].tolist() == [rank, rank]


def test_one_process_is_left_alone():
    outputs = {'loss': torch.tensor(3.0)}
    AverageLossHook().after_train_iter(None, 0, outputs=outputs)
    assert outputs == {'loss': torch.tensor(3.0)}
