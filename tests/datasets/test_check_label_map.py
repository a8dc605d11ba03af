"""Label maps in a pipeline of mmsegmentation: sound ones pass untouched, others are named with the remedy."""

import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from mmcnx2.registry import TRANSFORMS

HEIGHT, WIDTH = 12, 20


@pytest.fixture
def load(tmp_path):
    """A function: a label map through LoadImageFromFile, LoadAnnotations and the check."""
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / 'a.jpg')

    def run(values, num_classes=3, reduce_zero_label=False, resize=()):
        Image.fromarray(values).save(tmp_path / 'a.png')
        with DefaultScope.overwrite_default_scope('mmseg'):
            steps = ['LoadImageFromFile', *resize, 'LoadAnnotations']
            pipeline = Compose(
                [dict(type=step) if isinstance(step, str) else step for step in steps]
                + [dict(type='mmcnx2.CheckLabelMap', num_classes=num_classes)]
            )
        paths = dict(img_path=str(tmp_path / 'a.jpg'), seg_map_path=str(tmp_path / 'a.png'))
        return pipeline({**paths, 'reduce_zero_label': reduce_zero_label, 'seg_fields': []})['gt_seg_map']

    return run


@pytest.fixture
def sound():
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:3], values[3:5], values[5:6] = 1, 2, 255
    return values


def test_a_sound_map_passes_untouched(load, sound):
    assert np.array_equal(load(sound), sound)
    assert load(sound, num_classes=2, reduce_zero_label=True).max() == 255
    shrink = dict(type='Resize', scale=(10, 6))  # as in test pipelines: the image is resized before labels are read
    assert np.array_equal(load(sound, resize=[shrink]), sound)


def test_values_beyond_the_classes_are_counted_as_in_the_file(load, sound):
    sound[0, 0] = 7
    with pytest.raises(ValueError, match=r"a\.png' of '.*a\.jpg' holds 7; with 3 classes a pixel holds 0 to 2"):
        load(sound)
    with pytest.raises(ValueError, match=r"a\.png' .* holds 7; with 6 classes a pixel holds 1 to 6, and 0 or 255"):
        load(sound, num_classes=6, reduce_zero_label=True)
    load(sound, num_classes=7, reduce_zero_label=True)


def test_a_map_that_does_not_fit_its_image(load, sound):
    with pytest.raises(ValueError, match=r"a\.png' of .* is 12 x 19, its image is 12 x 20; make both from"):
        load(sound[:, 1:])
    with pytest.raises(ValueError, match=r"a\.png' .* has 3 channels; write one class number per pixel"):
        load(np.stack([sound] * 3, axis=2))


def test_settings():
    assert repr(TRANSFORMS.build(dict(type='mmcnx2.CheckLabelMap', num_classes=3))) == 'CheckLabelMap(num_classes=3)'
    for wrong in (0, 255, '3'):
        with pytest.raises(ValueError, match='1 to 254 classes'):
            TRANSFORMS.build(dict(type='mmcnx2.CheckLabelMap', num_classes=wrong))
