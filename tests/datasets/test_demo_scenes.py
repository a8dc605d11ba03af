"""Guards mmcnx2/datasets/demo_scenes.py: scenes are always the same, and what is said to lie where does lie there."""
import numpy as np
import pytest

from mmcnx2.datasets.demo_scenes import (
    CLASSES,
    MIN_VISIBLE_SHARE,
    NUM_OBJECTS,
    OUTLINES,
    OWN_TEXTURE_SHARE,
    RADIUS,
    TEXTURES,
    UNIT_AREAS,
    draw_scene,
)


@pytest.fixture(scope='module')
def scenes():
    return [draw_scene([0, index]) for index in range(60)]


def test_a_seed_is_a_scene():
    first, again, other = draw_scene([4, 1]), draw_scene([4, 1]), draw_scene([4, 2])
    assert np.array_equal(first.image_HWC, again.image_HWC) and np.array_equal(first.instance_HW, again.instance_HW)
    assert not np.array_equal(first.image_HWC, other.image_HWC)


def test_numbers_are_consistent(scenes):
    for scene in scenes:
        assert scene.image_HWC.shape == (192, 192, 3) and scene.image_HWC.dtype == np.uint8
        assert 1 <= len(scene.classes) <= NUM_OBJECTS[1]
        assert set(np.unique(scene.instance_HW)) == set(range(len(scene.classes) + 1))  # every object is to be seen
        for number, class_index in enumerate(scene.classes, start=1):
            assert np.all(scene.label_HW[scene.instance_HW == number] == class_index + 1)
        assert np.all((scene.label_HW == 0) == (scene.instance_HW == 0))


def test_objects_cover_each_other_but_not_wholly(scenes):
    """An object's visible area against the area of its convex whole: many are cut, none is hidden."""
    touching = 0
    for scene in scenes:
        objects = scene.instance_HW
        right = (objects[:, 1:] != objects[:, :-1]) & (objects[:, 1:] > 0) & (objects[:, :-1] > 0)
        touching += right.any()
        smallest = min(UNIT_AREAS[index] for index in set(scene.classes)) * RADIUS[0] ** 2 * MIN_VISIBLE_SHARE
        assert min(np.bincount(objects.ravel())[1:]) >= smallest
    assert touching > 0.4 * len(scenes)


def test_uppermost_objects_have_the_area_of_their_class():
    """The last object is covered by none; when it does not touch the border, its circle fills pi / 4 of its box."""
    checked = 0
    for index in range(80):
        scene = draw_scene([3, index])
        mask_HW = scene.instance_HW == len(scene.classes)
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        if CLASSES[scene.classes[-1]] == 'circle' and min(rows[0], columns[0]) > 0 and max(rows[-1], columns[-1]) < 191:
            assert mask_HW.sum() == pytest.approx(np.pi / 4 * np.ptp(rows) * np.ptp(columns), rel=0.12)
            checked += 1
    assert checked > 3


def test_all_classes_come_about_equally_often(scenes):
    counts = np.bincount([index for scene in scenes for index in scene.classes], minlength=len(CLASSES))
    assert counts.min() > 0.5 * counts.mean()


def test_the_edge_in_the_picture_is_where_the_mask_ends(scenes):
    """Pixels across an instance's border differ far more than neighbours inside."""
    across, within = [], []
    for scene in scenes:
        steps = np.abs(np.diff(scene.image_HWC.astype(int), axis=1)).sum(2)
        left, right = scene.instance_HW[:, :-1], scene.instance_HW[:, 1:]
        across.append(steps[left != right].mean())
        within.append(steps[(left == right) & (left == 0)].mean())
    assert np.mean(across) > 3 * np.mean(within)


def test_colour_helps_but_does_not_give_the_class(scenes):
    """The nearest class mean of an object's mean colour is right more often than chance, and not always."""
    rng = np.random.default_rng(0)
    scenes = scenes + [draw_scene([1, index]) for index in range(60)]
    colours = [(index, scene.image_HWC[scene.instance_HW == number].mean(0))
               for scene in scenes for number, index in enumerate(scene.classes, start=1)]
    rng.shuffle(colours)
    half = len(colours) // 2
    means = [np.mean([colour for index, colour in colours[:half] if index == of], axis=0) for of in range(len(CLASSES))]
    right = np.mean([np.argmin([np.linalg.norm(colour - mean) for mean in means]) == index
                     for index, colour in colours[half:]])
    assert 2 / len(CLASSES) < right < 0.95


def test_every_class_has_a_texture_of_its_own():
    assert len(set(TEXTURES)) == len(OUTLINES) == len(CLASSES)
    assert 1 / len(CLASSES) < OWN_TEXTURE_SHARE < 1


def test_backgrounds_are_muted(scenes):
    """Objects can be told from what they lie on by how colourful they are."""
    colourful = [np.ptp(scene.image_HWC.astype(int), axis=2) for scene in scenes]
    inside = np.mean([values[scene.instance_HW > 0].mean() for values, scene in zip(colourful, scenes, strict=True)])
    outside = np.mean([values[scene.instance_HW == 0].mean() for values, scene in zip(colourful, scenes, strict=True)])
    assert inside > 3 * outside


def test_outlines_are_signed_distances():
    """Negative inside, positive outside, slope about 1: mask edges and smooth edges come from them."""
    grid = np.linspace(-1.4, 1.4, 281)
    x, y = np.meshgrid(grid, grid)
    for name, outline, area in zip(CLASSES, OUTLINES, UNIT_AREAS, strict=True):
        values = outline(x, y)
        assert (values[140, 140] < 0) == (name != 'ring') and values[0, 0] > 0
        assert area == pytest.approx((values < 0).sum() * 0.01 ** 2, rel=0.03)
        slope = np.hypot(*np.gradient(values, grid, grid))[np.abs(values) < 0.03]
        assert np.median(slope) == pytest.approx(1, abs=0.05)
    assert min(UNIT_AREAS) > 1.2  # no class is told by its size, nor is one too small


@pytest.mark.parametrize('size', [64, 96, 256])
def test_objects_grow_with_the_size(scenes, size):
    resized = [draw_scene([0, index], size) for index in range(30)]
    assert all(scene.image_HWC.shape == (size, size, 3) for scene in resized)
    shares, expected = [[(scene.instance_HW > 0).mean() for scene in some] for some in (resized, scenes)]
    assert np.mean(shares) == pytest.approx(np.mean(expected), rel=0.25)
    finest = [np.abs(np.diff(scene.image_HWC[:, :, 1].astype(int))).mean() for scene in resized]
    assert np.mean(finest) > 1  # textures are there at every size
