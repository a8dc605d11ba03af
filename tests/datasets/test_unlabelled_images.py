"""Guards mmcnx2/datasets/unlabelled_images.py: bad files are survived, samples depend on their seed alone."""
import logging
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image

from mmcnx2.datasets import EpochSeededSampler, SeededIndex, UnlabelledImages, epoch_seeded_sampler
from mmcnx2.datasets.load_image import LoadImage
from mmcnx2.datasets.unlabelled_images import _common_folder

PIPELINE = [dict(type='mmcnx2.LoadImage'),
            dict(type='mmpretrain.RandomResizedCrop', scale=16, crop_ratio_range=(0.2, 1.), backend='pillow',
                 interpolation='bicubic'),
            dict(type='mmcv.RandomFlip', prob=0.5),
            dict(type='mmpretrain.PackInputs')]
NUM_GOOD = 24


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(NUM_GOOD):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(tmp_path / f'{index:02d}.png')
    return tmp_path


@pytest.fixture
def warnings_logged():
    """Texts of the warnings that reach mmengine's log."""
    texts = []

    class Keep(logging.Handler):
        def emit(self, record):
            if record.levelno == logging.WARNING:
                texts.append(record.getMessage())

    logger, keep = MMLogger.get_current_instance(), Keep()
    logger.addHandler(keep)
    yield texts
    logger.removeHandler(keep)


def spoil(folder, *indices):
    """Cuts the files short: their headers stay sound."""
    for index in indices:
        path = folder / f'{index:02d}.png'
        path.write_bytes(path.read_bytes()[:700])


class RecordAllChance:
    """A transform that stores what the three global generators give."""

    def __call__(self, results):
        results['drawn'] = [random.random(), np.random.rand(), torch.rand(1).item()]
        return results


class Keep:
    """A transform instead of PackInputs: results stay a dict."""

    def __call__(self, results):
        return dict(path=results['img_path'], **{key: results[key] for key in ('drawn',) if key in results})


def plain(folder, **options):
    return UnlabelledImages(folder, pipeline=[LoadImage(), Keep()], **options)


# As a dataset of mmengine

def test_is_a_dataset_of_mmengine(folder):
    dataset = DATASETS.build(dict(type='mmcnx2.UnlabelledImages', source=folder.name, data_root=str(folder.parent),
                                  pipeline=PIPELINE, metainfo=dict(colour='any')))
    assert isinstance(dataset, BaseDataset) and len(dataset) == NUM_GOOD
    assert dataset.metainfo == dict(dataset_type='unlabelled', colour='any')
    assert dataset.get_data_info(3) == dict(img_path=str(folder / '03.png'), sample_idx=3)
    sample = dataset[3]
    assert sample['inputs'].shape == (3, 16, 16) and sample['inputs'].dtype == torch.uint8
    assert sample['data_samples'].metainfo['img_path'] == str(folder / '03.png')
    assert 'sample_seed' not in sample['data_samples'].metainfo
    assert dataset[-1]['data_samples'].metainfo['img_path'] == str(folder / '23.png')
    with pytest.raises(IndexError):
        dataset[NUM_GOOD]


def test_indices_subsets_and_lazy_init(folder):
    assert [plain(folder, indices=[5, 2])[at]['path'][-6:] for at in range(2)] == ['05.png', '02.png']
    assert len(plain(folder).get_subset(4)) == 4
    dataset = plain(folder, lazy_init=True)
    assert dataset[1]['path'].endswith('01.png')
    dataset.get_subset_([3, 4, 5])
    assert len(dataset) == 3 and dataset[2]['path'].endswith('05.png')


# Bad files

def test_a_bad_file_is_named_once_counted_and_replaced(folder, warnings_logged):
    spoil(folder, 3, 7)
    dataset = plain(folder)
    for _ in range(3):
        paths = [dataset[index]['path'] for index in range(NUM_GOOD)]
    assert len(warnings_logged) == 2
    assert '(1 so far)' in warnings_logged[0] and '03.png' in warnings_logged[0]
    assert '(2 so far)' in warnings_logged[1] and 'max_bad_share=0.1' in warnings_logged[1]
    assert dataset.bad_files == [str(folder / '03.png'), str(folder / '07.png')]
    assert not set(paths) & set(dataset.bad_files)
    assert [path for index, path in enumerate(paths) if index not in (3, 7)] == [
        str(folder / f'{index:02d}.png') for index in range(NUM_GOOD) if index not in (3, 7)]


def test_a_file_known_as_bad_is_not_read_again(folder):
    spoil(folder, 3)
    tried = []
    dataset = UnlabelledImages(folder, pipeline=[lambda x: tried.append(x['img_path']) or x, LoadImage(), Keep()])
    for _ in range(3):
        dataset[3]
    assert tried.count(str(folder / '03.png')) == 1 and len(tried) == 4


def test_the_replacement_does_not_depend_on_what_happened_before(folder):
    spoil(folder, 3, 7)
    fresh, experienced = plain(folder), plain(folder)
    [experienced[index] for index in range(NUM_GOOD)]
    for index in (3, 7):
        assert experienced[index] == fresh[index]
    replacements = {fresh[SeededIndex(3, seed)]['path'] for seed in range(20)}
    assert len(replacements) > 5  # not always the same neighbour


def test_too_many_bad_files_stop_with_a_sentence(folder):
    spoil(folder, 0, 1, 2)
    dataset = plain(folder)
    dataset[0], dataset[1]
    said = r"3 of the \d+ files.*\(3 damaged\).*max_bad_share=0.1.*'.*00.png'.*raise max_bad_share"
    with pytest.raises(ValueError, match=said) as caught:
        dataset[2]
    assert '\n' not in str(caught.value)
    dataset = plain(folder, max_bad_share=0.125)
    assert all(dataset[index] for index in range(NUM_GOOD))
    with pytest.raises(ValueError, match='1 of the 1 files'):
        plain(folder, max_bad_share=0.)[0]


def test_a_folder_without_one_good_file_stops(folder):
    spoil(folder, *range(NUM_GOOD))
    for share in (0., 0.1, 0.9, 1.):
        with pytest.raises(ValueError, match=rf'max_bad_share={share}'):
            plain(folder, max_bad_share=share)[0]


def test_early_bad_files_do_not_stop_a_long_run(tmp_path):
    (tmp_path / 'list.txt').write_text(''.join(f'{index}.png\n' for index in range(3000)))
    for index in range(3000):
        (tmp_path / f'{index}.png').symlink_to(tmp_path / ('bad.png' if index < 90 else 'good.png'))
    Image.new('RGB', (4, 4)).save(tmp_path / 'good.png')
    (tmp_path / 'bad.png').write_text('no')
    dataset = plain(tmp_path / 'list.txt')
    paths = {dataset[index]['path'] for index in range(90)}  # 3% of all, but 100% of the first
    assert len(dataset.bad_files) == 90 and len(paths) > 60


def test_vanished_files_are_bad_files(folder):
    dataset = plain(folder)
    (folder / '05.png').unlink()
    assert dataset[5]['path'] != str(folder / '05.png') and dataset.bad_files == [str(folder / '05.png')]


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_folder_that_vanishes_stops_at_once(folder, tmp_path, warnings_logged, num_workers):
    moved = tmp_path.parent / f'{tmp_path.name}_moved'
    dataset = plain(folder, max_bad_share=1)
    loader = iter(torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=list,
                                              **(dict(prefetch_factor=1) if num_workers else {})))
    next(loader)
    folder.rename(moved)
    try:
        with pytest.raises(FileNotFoundError, match=rf"folder '{folder}' .*has gone.* of its 24 files.*--resume"):
            list(loader)
        assert not dataset.bad_files and not warnings_logged
    finally:
        moved.rename(folder)


def test_a_vanished_part_of_the_folders_counts_as_bad_files(folder):
    (folder / 'part').mkdir()
    for index in range(4):
        (folder / f'{index:02d}.png').rename(folder / 'part' / f'{index}.png')
    dataset = plain(folder, max_bad_share=0.2)
    (folder / 'part').rename(folder.parent / 'other')
    assert all(dataset[index] for index in range(NUM_GOOD))
    assert dataset.files_by_state(dataset.file_states) == {
        str(folder / 'part' / f'{index}.png'): 'cannot be opened' for index in range(4)}


def test_the_common_folder_of_lists():
    assert _common_folder(['/a/b/c.png', '/a/bd.png', '/a/b/e/f.png']) == '/a'
    assert _common_folder(['/a/b/c.png']) == '/a/b'
    assert _common_folder(['a/c.png', '/a/b.png']) == ''


def test_a_transform_that_answers_none_rejects_the_file(folder):
    reject = [LoadImage(), lambda x: None if x['img_path'].endswith('05.png') else x, Keep()]
    dataset = UnlabelledImages(folder, pipeline=reject)
    assert not dataset[5]['path'].endswith('05.png')
    assert dataset.files_by_state(dataset.file_states) == {str(folder / '05.png'): 'rejected by a transform'}


def test_a_mistake_in_a_transform_is_not_taken_for_a_bad_file(folder):
    def wrong(results):
        raise KeyError('imgs')

    with pytest.raises(KeyError, match='imgs'):
        UnlabelledImages(folder, pipeline=[LoadImage(), wrong])[0]


def test_test_mode_replaces_nothing(folder):
    spoil(folder, 3)
    dataset = plain(folder, test_mode=True)
    assert dataset[2]
    for _ in range(2):
        with pytest.raises(ValueError, match=r'03.png.*test mode'):
            dataset[3]


def test_check_files_looks_before_the_start(folder, warnings_logged):
    (folder / '04.png').write_bytes(b'')
    (folder / '05.png').write_text('<html>')
    dataset = plain(folder, check_files=True)
    assert len(warnings_logged) == 2 and len(dataset.bad_files) == 2
    (folder / '06.png').write_bytes(b'')
    assert plain(folder).bad_files == []
    with pytest.raises(ValueError, match=r'3 of the 24 files seen so far \(12.5%\)'):
        plain(folder, check_files=True)


def test_share_after_check_files_is_over_all(tmp_path):
    """Bad headers that are known from the start are not held against the few files read so far."""
    Image.new('RGB', (4, 4)).save(tmp_path / 'good.png')
    for index in range(2000):
        (tmp_path / f'x{index}.png').symlink_to(tmp_path / ('nowhere' if index < 190 else 'good.png'))
    dataset = plain(tmp_path, check_files=True)
    assert len(dataset.bad_files) == 190
    (tmp_path / 'x1000.png').unlink()
    index = next(index for index in range(len(dataset)) if dataset._path(index).endswith('x1000.png'))
    assert dataset[index] and len(dataset.bad_files) == 191


def test_settings_out_of_range_are_named(folder):
    with pytest.raises(ValueError, match=r'max_bad_share=1\.5'):
        plain(folder, max_bad_share=1.5)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        plain(folder / 'nowhere')


# Seeds

def test_pipeline_draws_from_the_seed_and_disturbs_nothing(folder):
    dataset = UnlabelledImages(folder, pipeline=[LoadImage(), RecordAllChance(), Keep()])
    first = dataset[SeededIndex(2, 77)]['drawn']
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert dataset[SeededIndex(2, 77)]['drawn'] == first != dataset[SeededIndex(2, 78)]['drawn']
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert dataset[2]['drawn'] != dataset[2]['drawn']  # a plain index draws from the global generators


def test_replacement_draws_the_same_with_and_without_the_failed_attempt(folder):
    spoil(folder, 3)
    pipeline = [RecordAllChance(), LoadImage(), RecordAllChance(), Keep()]  # chance is used before the file fails
    dataset = UnlabelledImages(folder, pipeline=pipeline)
    assert dataset[SeededIndex(3, 9)] == dataset[SeededIndex(3, 9)]


def deliver(monkeypatch, folder, num_workers, world_size, batch_size):
    """All samples of two epochs, in batches over all processes: {(epoch, step): {seed: (path, tensor)}}."""
    batches = {}
    for rank in range(world_size):
        monkeypatch.setattr(epoch_seeded_sampler, 'get_dist_info', lambda rank=rank: (rank, world_size))
        loader = Runner.build_dataloader(dict(
            dataset=dict(type='mmcnx2.UnlabelledImages', source=str(folder), pipeline=PIPELINE),
            sampler=dict(type='mmcnx2.EpochSeededSampler', shuffle=True), batch_size=batch_size,
            num_workers=num_workers, persistent_workers=num_workers > 0,
            collate_fn=dict(type='default_collate')), seed=1)
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            for step, batch in enumerate(loader):
                samples = batches.setdefault((epoch, step), {})
                for pixels, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
                    samples[sample.metainfo['sample_seed']] = sample.metainfo['img_path'], pixels
    return batches


def test_samples_depend_neither_on_workers_nor_on_processes(folder, monkeypatch):
    spoil(folder, 3)
    expected = deliver(monkeypatch, folder, 0, 1, 4)
    assert len(expected) == 12 and all(len(samples) == 4 for samples in expected.values())
    for num_workers, world_size in ((2, 1), (0, 2), (2, 2)):
        delivered = deliver(monkeypatch, folder, num_workers, world_size, 4 // world_size)
        assert delivered.keys() == expected.keys()
        for key, samples in expected.items():
            assert samples.keys() == delivered[key].keys()
            for seed, (path, pixels) in samples.items():
                assert delivered[key][seed][0] == path and torch.equal(delivered[key][seed][1], pixels)
    by_path = [{path: pixels for key, samples in expected.items() if key[0] == epoch
                for path, pixels in samples.values()} for epoch in range(2)]
    assert sum(torch.equal(by_path[0][path], by_path[1][path]) for path in by_path[0].keys() & by_path[1].keys()) == 0


def test_workers_tell_each_other_about_bad_files(folder, capfd):
    spoil(folder, 3, 7)
    dataset = plain(folder)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, num_workers=2, sampler=EpochSeededSampler(dataset, seed=0), collate_fn=list)
    for _ in range(2):  # new workers each time
        delivered = [sample['path'] for batch in loader for sample in batch]
    assert len(delivered) == NUM_GOOD and len(dataset.bad_files) == 2
    output = ''.join(capfd.readouterr())
    assert output.count('03.png') + output.count('07.png') <= 4  # once per worker at most, not once per access
    assert "'" + str(folder / '03.png') in output


def test_too_many_bad_files_reach_the_user_through_workers(folder):
    spoil(folder, *range(8))
    dataset = plain(folder)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list)
    with pytest.raises(ValueError, match=r'max_bad_share=0\.1 allows'):
        list(loader)


def test_fcmae_draws_its_mask_from_the_seed(folder):
    """The name of the metainfo is a contract with mmcnx2.FCMAE."""
    sample = UnlabelledImages(folder, pipeline=PIPELINE)[SeededIndex(2, 2 ** 63 - 1)]['data_samples']
    assert sample.get('sample_seed') == 2 ** 63 - 1
    assert torch.tensor([sample.get('sample_seed')]).item() == 2 ** 63 - 1
