"""Features are averages over positions; a cached array answers only for what it was computed from."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_pretraining import CONFIG, write_checkpoint, write_config, write_pictures

from mmcnx2.analysis import features as module
from mmcnx2.analysis.features import FeatureSource, features_of, stratified_folds
from mmcnx2.analysis.pictures import PictureReader
from mmcnx2.analysis.trained_models import load_trained_backbone
from mmcnx2.models.layers import DenseLayout


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(write_config())
    return list(map(str, write_pictures(num=5)))


def source(layer='output', size=(64, 64), checkpoint='checkpoint.pth', config='config.py', crop_share=1.0, **options):
    cfg = write_config(CONFIG) if config == 'config.py' else write_config(config, 'other.py')
    reader = PictureReader(cfg, size, crop_share)
    return FeatureSource(load_trained_backbone(cfg, checkpoint), reader, layer, **options)


@pytest.mark.parametrize('layer', ['output', 'stages.1.0', 'stages.2.1.grn'])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_features_are_the_average_over_positions(paths, layer, num_workers):
    features = features_of(source(layer), paths, batch_size=2, num_workers=num_workers)
    one = source(layer)
    pictures = torch.stack([one.reader(path) for path in paths])
    model = one.backbone.model
    with torch.no_grad():
        x = one.backbone.images(pictures).permute(0, 2, 3, 1)
        found, layout = {}, DenseLayout()
        for i, (downsample, blocks) in enumerate(zip(model.downsample_layers, model.stages, strict=True)):
            x = downsample(x)
            for j, block in enumerate(blocks):
                y = block.pwconv1(block.norm(layout.conv(x, block.dwconv), layout), layout)
                found[f'stages.{i}.{j}.grn'] = block.grn(torch.nn.functional.gelu(y), layout)
                x = found[f'stages.{i}.{j}'] = block(x, layout)
    found['output'] = x
    expected = found[layer].mean(dim=(1, 2)).numpy()
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_the_cache_answers_the_same_question_only(paths, monkeypatch):
    computed = []
    compute = module._compute
    monkeypatch.setattr(module, '_compute', lambda *args: computed.append(1) or compute(*args))

    def ask(given=paths, **options):
        before = len(computed)
        features = features_of(source(**options), given, cache='cache')
        return features, len(computed) - before

    first, count = ask()
    assert count == 1 and isinstance(first, np.memmap)
    assert np.array_equal(first, features_of(source(), paths))
    again, count = ask()
    assert count == 0 and np.array_equal(first, again)
    for options in (
        dict(layer='stages.2.1'),
        dict(size=(32, 32)),
        dict(crop_share=0.5),
        dict(checkpoint='random'),
        dict(config=CONFIG.replace('58.395', '50.0')),
        dict(config=CONFIG.replace("'mmcnx2.LoadImage'", "'mmcnx2.LoadImage', channel_order='rgb'")),
        dict(layer='stages.0.0'),
        dict(layer='stages.0.0', channels_first=True),
    ):
        other, count = ask(**options)
        assert count == 1, options
        assert other.shape != first.shape or not np.array_equal(first, other), options
    assert ask(given=paths[::-1])[1] == 1
    write_checkpoint(write_config(), seed=1)  # under the same name
    assert ask()[1] == 1
    stat = os.stat(paths[0])
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert ask()[1] == 1 and ask()[1] == 0


def test_the_cache_holds_whole_arrays_with_their_keys(paths, monkeypatch):
    features_of(source(), paths, cache='cache')
    (array,), (key,) = Path('cache').glob('*.npy'), Path('cache').glob('*.json')
    assert array.stem == key.stem and len(list(Path('cache').iterdir())) == 2
    assert json.loads(key.read_text())['num_files'] == 5
    key.write_text('{}')  # of something else
    array.write_bytes(b'')
    assert np.isfinite(features_of(source(), paths, cache='cache')).all()
    Path(paths[3]).write_text('broken')
    with pytest.raises(ValueError, match='cannot be read as a picture'):
        features_of(source(), paths, cache='cache', batch_size=1)
    assert len(list(Path('cache').iterdir())) == 2  # nothing half-written


def test_features_that_are_not_finite_are_refused(paths):
    one = source()
    next(one.backbone.model.parameters()).data.fill_(float('inf'))
    with pytest.raises(ValueError, match='not finite'):
        features_of(one, paths)
    with pytest.raises(ValueError, match='no pictures'):
        features_of(one, [])


def test_progress_counts_pictures(paths):
    seen = []
    features_of(source(), paths, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_folds_are_stratified_and_whole():
    labels = [0] * 10 + [1] * 7 + [2] * 3
    folds = stratified_folds(labels, 5, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(20))
    assert [len(fold) for fold in folds] == [4] * 5
    for fold in folds:
        counts = np.bincount(np.array(labels)[fold], minlength=3)
        assert counts[0] == 2 and counts[1] in (1, 2) and counts[2] in (0, 1)
    assert all(map(np.array_equal, folds, stratified_folds(labels, 5, seed=0)))
    assert not all(map(np.array_equal, folds, stratified_folds(labels, 5, seed=1)))
    with pytest.raises(ValueError, match='--folds 1'):
        stratified_folds(labels, 1, seed=0)
    assert [len(fold) for fold in stratified_folds(labels, 20, seed=0)] == [1] * 20
    with pytest.raises(ValueError, match=r'--folds 21: there are 20 pictures.*2 to 20'):
        stratified_folds(labels, 21, seed=0)
    with pytest.raises(ValueError, match='class 1 has one picture'):
        stratified_folds([0, 0, 1], 2, seed=0)
