"""Guards mmcnx2/engine/skipped_images.py: every file that could not be used stands in the report, with its kind."""

import os
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.dataset import RepeatDataset
from PIL import Image

from mmcnx2.datasets import LoadImage, UnlabelledImages
from mmcnx2.engine import SkippedImagesHook, rendezvous

NUM_IMAGES = 12


def keep_path(results):
    return dict(path=results['img_path'])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for index in range(NUM_IMAGES):
        Image.new('RGB', (4, 4)).save(folder / f'{index:02d}.png')
    (folder / '03.png').write_bytes(b'')
    (folder / '07.png').write_text('<html>')
    return folder


def images(folder, **options) -> UnlabelledImages:
    return UnlabelledImages(folder, pipeline=[LoadImage(), keep_path], max_bad_share=0.5, **options)


def run(work_dir, dataset, indices, num_workers=0, resume=False) -> str | None:
    """One epoch over the indices; the report, None when there is none."""
    work_dir.mkdir(exist_ok=True)
    loader = torch.utils.data.DataLoader(dataset, sampler=indices, num_workers=num_workers, collate_fn=list)
    runner = SimpleNamespace(train_dataloader=loader, work_dir=str(work_dir), _resume=resume)
    hook = SkippedImagesHook()
    hook.before_train(runner)
    list(loader)
    hook.after_train_epoch(runner)
    hook.after_train(runner)
    report = work_dir / 'skipped_images.txt'
    return report.read_text(errors='surrogateescape') if report.exists() else None


@pytest.mark.parametrize('num_workers', [0, 2])
def test_every_skipped_file_is_reported(folder, tmp_path, capfd, num_workers):
    report = run(tmp_path / 'run', images(folder), range(NUM_IMAGES), num_workers)
    assert report.splitlines() == [
        '# 2 pictures could not be used: 1 empty, 1 not a picture',
        f'empty\t{folder}/03.png',
        f'not a picture\t{folder}/07.png',
    ]
    logged = capfd.readouterr().out
    assert f'2 of {NUM_IMAGES} pictures could not be used' in logged and 'run/skipped_images.txt' in logged


def test_names_that_are_not_utf8_stop_no_training(folder, tmp_path, capfd):
    bad = os.fsdecode(b'caf\xe9.png')
    (folder / bad).write_bytes(b'')
    report = run(tmp_path / 'run', images(folder), range(NUM_IMAGES + 1))
    assert f'empty\t{folder}/{bad}' in report.splitlines()
    logged = capfd.readouterr()
    assert logged.out.count(r'caf\udce9.png') == 2 and 'Logging error' not in logged.err
    resumed = run(tmp_path / 'run', images(folder), [0], resume=True)
    assert sorted(resumed.splitlines()) == sorted(report.splitlines())


def test_sets_inside_wrappers_are_found(folder, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'x.png').write_bytes(b'')
    Image.new('RGB', (4, 4)).save(other / 'y.png')
    both = torch.utils.data.ConcatDataset([RepeatDataset(images(folder), times=2), images(other)])
    report = run(tmp_path / 'run', both, range(len(both)))
    assert report.splitlines()[0] == '# 3 pictures could not be used: 2 empty, 1 not a picture'
    assert f'empty\t{other}/x.png' in report


def test_without_a_bad_file_or_with_other_data_nothing_is_written(folder, tmp_path):
    assert run(tmp_path / 'run', images(folder), [0, 1, 2]) is None
    assert run(tmp_path / 'run', torch.utils.data.TensorDataset(torch.zeros(3)), [0]) is None


def test_a_resumed_run_remembers_what_it_has_not_tried_since(folder, tmp_path):
    run(tmp_path / 'run', images(folder), range(NUM_IMAGES))
    Image.new('RGB', (4, 4)).save(folder / '03.png')  # mended
    assert run(tmp_path / 'run', images(folder), range(6), resume=True).splitlines()[1:] == [
        f'not a picture\t{folder}/07.png']  # fmt: skip
    assert 'none' in run(tmp_path / 'run', images(folder), range(6))  # a new run starts anew


def _one_of_two(rank: int, folder) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    run(folder / 'run', images(folder / 'images'), [range(6), range(6, 12)][rank])
    rendezvous.part()


def test_two_processes_report_what_both_met(folder, tmp_path):
    mp.start_processes(_one_of_two, args=(tmp_path,), nprocs=2, start_method='spawn')
    report = (tmp_path / 'run/skipped_images.txt').read_text()
    assert report.splitlines()[1:] == [f'empty\t{folder}/03.png', f'not a picture\t{folder}/07.png']
