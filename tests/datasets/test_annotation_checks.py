"""Mistakes of annotations: each is named with its file, its ids and what to do, and sound files give no sentence."""

import copy
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmcnx2.datasets import annotation_checks
from mmcnx2.datasets.annotation_checks import coco_problems, evenly_spread, image_size, label_map_problems

WIDTH, HEIGHT = 40, 30
SOUND = dict(
    images=[dict(id=number, file_name=f'{number}.png', width=WIDTH, height=HEIGHT) for number in (1, 2)],
    categories=[dict(id=7, name='red fox'), dict(id=20, name='owl')],
    annotations=[
        dict(
            id=number, image_id=number, category_id=category, bbox=[5, 5, 20, 10], area=200, iscrowd=0,
            segmentation=[[5, 5, 25, 5, 25, 15, 5, 15]])
        for number, category in ((1, 7), (2, 20))
    ],
)  # fmt: skip


def write_image(path, width=WIDTH, height=HEIGHT):
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


@pytest.fixture
def coco(tmp_path):
    """A function: writes COCO data, by default sound, after a change of its content, and gives what is found."""
    (tmp_path / 'images').mkdir()
    for number in (1, 2):
        write_image(tmp_path / 'images' / f'{number}.png')

    def problems(change=lambda content: None, **options):
        content = copy.deepcopy(SOUND)
        change(content)
        (tmp_path / 'my.json').write_text(json.dumps(content))
        return coco_problems(tmp_path / 'my.json', tmp_path / 'images', **options)

    problems.images = tmp_path / 'images'
    return problems


def first_annotation(**changes):
    def change(content):
        for key, value in changes.items():
            if value is None:
                del content['annotations'][0][key]
            else:
                content['annotations'][0][key] = value

    return change


def test_sound_coco_with_gaps_between_ids_gives_no_sentence(coco):
    assert coco() == []


MISTAKES = {
    'no category_id': (first_annotation(category_id=None), ['no category_id in annotation 1', "'1.png'"]),
    'unknown category': (
        first_annotation(category_id=8),
        ['category_id', "annotation 1 (image '1.png'): 8", 'one of 7, 20', 'leave the annotation out'],
    ),
    'category in quotes': (first_annotation(category_id='7'), ['lacks', "'7'"]),
    'unknown image': (first_annotation(image_id=9), ['image_id that `images` lacks', 'annotation 1 (image id 9)']),
    'no image_id': (first_annotation(image_id=None), ['image_id that `images` lacks', 'annotation 1 (image id None)']),
    'no id': (first_annotation(id=None), ['no id in annotation None']),
    'same id': (first_annotation(id=2), ['an id that another has as well in annotation 2']),
    'no box': (first_annotation(bbox=None), ['no `bbox` of four numbers']),
    'box of text': (first_annotation(bbox=['1', 2, 3, 4]), ['no `bbox` of four numbers']),
    'box of nothing': (first_annotation(bbox=[5, 5, 20, float('nan')]), ['no `bbox` of four numbers']),
    'flat box': (first_annotation(bbox=[5, 5, 20, 0]), ['without width or height', 'not two corners']),
    'box in shares': (
        first_annotation(bbox=[0.1, 0.1, 0.5, 0.3]),
        ['smaller than a pixel', 'not in shares'],
    ),
    'box outside': (first_annotation(bbox=[5, 5, 37, 10]), ['a box that reaches outside its image']),
    'box above': (first_annotation(bbox=[5, -3, 20, 10]), ['a box that reaches outside its image']),
    'no area': (first_annotation(area=None), ['no `area`']),
    'no iscrowd': (first_annotation(iscrowd=None), ['no `iscrowd`', '"iscrowd": 0']),
    'no mask': (first_annotation(segmentation=None), ['no `segmentation`']),
    'empty mask': (first_annotation(segmentation=[]), ['no `segmentation`']),
    'polygon outside': (
        first_annotation(segmentation=[[5, 5, 25, 5, 25, 33]]),
        ['a polygon that reaches outside its image in annotation 1', 'cut it off'],
    ),
    'polygon left of it': (first_annotation(segmentation=[[5, 5, -2, 5, 25, 20]]), ['a polygon that reaches outside']),
    'second polygon outside': (
        first_annotation(segmentation=[[5, 5, 25, 5, 25, 15], [30, 5, 42, 5, 30, 15]]),
        ['a polygon that reaches outside'],
    ),
    'two points': (first_annotation(segmentation=[[5, 5, 25, 15]]), ['fewer than 3 points']),
    'odd polygon': (first_annotation(segmentation=[[5, 5, 25, 15, 20, 20, 7]]), ['odd number of values']),
    'flat list': (first_annotation(segmentation=[5, 5, 25, 5, 25, 15]), ['neither RLE nor a list of polygons']),
    'RLE turned': (
        first_annotation(segmentation=dict(size=[WIDTH, HEIGHT], counts=[0, 1200])),
        ['RLE of another size', 'annotation 1', '[40, 30] instead of [30, 40]', '[height, width]'],
    ),
    'RLE without counts': (first_annotation(segmentation=dict(size=[HEIGHT, WIDTH])), ['RLE without']),
    'same category id': (
        lambda content: content['categories'][0].update(id=20),
        ['id used more than once in `categories`: id 20', 'a category_id that `categories` lacks'],
    ),
    'same category name': (
        lambda content: content['categories'][0].update(name='owl'),
        ["name used more than once in `categories`: name 'owl'"],
    ),
    'same image id': (
        lambda content: content['images'][1].update(id=1),
        ["id used more than once in `images`: id 1 ('1.png' and '2.png')", 'an image_id that `images` lacks'],
    ),
    'nothing annotated': (lambda content: content['annotations'].clear(), ['no annotation at all']),
    'missing file': (lambda content: content['images'][1].update(file_name='three.png'), ['no file', 'three.png']),
    'other size': (
        lambda content: content['images'][1].update(width=50),
        ['a size in `images` that is not that of', '2.png', '30 x 40 instead of 30 x 50'],
    ),
    'no categories': (lambda content: content.pop('categories'), ['not COCO', '`categories`']),
    'no annotations': (lambda content: content.pop('annotations'), ['not COCO', '`annotations`']),
    'image without height': (lambda content: content['images'][1].pop('height'), ['images[1] has no proper height']),
    'unnamed category': (lambda content: content['categories'][0].pop('name'), ['categories[0] has no proper name']),
    'annotations of text': (lambda content: content.update(annotations=['x']), ['not COCO', '`annotations`']),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_each_mistake_is_named(coco, mistake):
    change, expected = MISTAKES[mistake]
    problems = coco(change)
    assert len(problems) in (1, 2)
    assert all('my.json' in sentence and '\n' not in sentence for sentence in problems)
    for words in expected:
        assert words in ' | '.join(problems)
    if len(problems) == 2:
        assert mistake in ('same category id', 'same image id')  # where the second follows from the first


def test_what_is_allowed(coco):
    assert coco(first_annotation(bbox=[-0.9, 5, 41.8, 10])) == []  # rounding
    assert coco(first_annotation(segmentation=dict(size=[HEIGHT, WIDTH], counts=[0, 1200]))) == []
    assert coco(first_annotation(segmentation=None), needs_masks=False) == []


def test_many_of_a_kind_are_counted_and_rare_slips_of_large_files_forgiven(coco, monkeypatch):
    def many(number_bad, number):
        def change(content):
            one = content['annotations'][0]
            content['annotations'] = [
                {**one, 'id': i, 'bbox': [5, 5, 20, 0] if i < number_bad else one['bbox']} for i in range(number)
            ]

        return change

    (sentence,) = coco(many(1200, 1200))
    assert "1,200 annotations (0 (image '1.png'); 1 (image '1.png'); 2 (image '1.png') ...)" in sentence
    assert '2 annotations (0' in coco(many(2, 2000))[0]
    monkeypatch.setattr(annotation_checks, 'FORGIVEN_SHARE', 1e-3)
    assert coco(many(2, 2000)) == []
    assert len(coco(many(3, 2000))) == 1


def test_files_that_are_not_coco(tmp_path):
    assert 'does not exist' in coco_problems(tmp_path / 'none.json', tmp_path)[0]
    for content, words in (('{', 'is not JSON'), ('[]', 'not COCO'), ('{"images": []}', 'not COCO')):
        (tmp_path / 'other.json').write_text(content)
        (sentence,) = coco_problems(tmp_path / 'other.json', tmp_path)
        assert words in sentence and 'other.json' in sentence and 'COCO' in sentence
    (tmp_path / 'binary.json').write_bytes(b'\xff\xfe\x00\x81')
    assert 'is not JSON' in coco_problems(tmp_path / 'binary.json', tmp_path)[0]


def test_images_of_coco(coco):
    write_image(coco.images / '1.png', 33, 22)
    assert coco(num_images=0) == []
    assert '22 x 33 instead of 30 x 40' in coco(num_images=1)[0]
    (coco.images / '1.png').write_bytes(b'no picture')
    assert 'no readable picture' in coco()[0]
    assert 'no file for image' in coco(lambda content: content['images'][0].update(file_name='sub/1.png'))[0]
    (coco.images / '1.png').unlink()
    assert '1.png' in coco(num_images=0)[0]


def test_camera_rotation_counts(coco):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(coco.images / '2.png', exif=exif)
    assert image_size(coco.images / '2.png') == (HEIGHT, WIDTH)
    (sentence,) = coco()
    assert '40 x 30 (its camera rotation turns it) instead of 30 x 40' in sentence


def claim(path, width, height, mode='RGB', orientation=1):
    """A PNG whose header claims a size; there are no pixels to decode."""

    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    exif = Image.Exif()
    exif[0x0112] = orientation
    header = struct.pack('>IIBBBBB', width, height, 8, 2 if mode == 'RGB' else 0, 0, 0, 0)
    chunks = chunk(b'IHDR', header) + chunk(b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0'))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks + chunk(b'IDAT', b'') + chunk(b'IEND', b''))


def test_pictures_that_only_mmcv_decodes_have_a_size_too(coco):
    limit = Image.MAX_IMAGE_PIXELS
    claim(coco.images / '1.png', 20000, 19000)
    assert '19000 x 20000 instead of 30 x 40' in coco()[0]
    assert coco(lambda content: content['images'][0].update(width=20000, height=19000)) == []
    claim(coco.images / '1.png', 20000, 19000, orientation=6)
    assert image_size(coco.images / '1.png') == (19000, 20000)
    with pytest.raises(Image.DecompressionBombError):  # others are protected as before
        Image.open(coco.images / '1.png')
    assert limit == Image.MAX_IMAGE_PIXELS


# ---- label maps


@pytest.fixture
def labels(tmp_path):
    """A function: what is found in two images with label maps of three classes; `write` changes a label."""
    for name in ('a', 'deep/b'):
        for kind in ('images', 'labels'):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / 'images' / f'{name}.jpg')

    def write(name, values, mode=None):
        Image.fromarray(np.asarray(values), mode).save(tmp_path / 'labels' / f'{name}.png')

    def problems(num_classes=3, **options):
        return label_map_problems(tmp_path / 'images', tmp_path / 'labels', num_classes, **options)

    problems.write, problems.folder = write, tmp_path
    sound = np.zeros((HEIGHT, WIDTH), np.uint8)
    sound[:9], sound[9:12], sound[12:15] = 1, 2, 255
    problems.sound = sound
    write('a', sound)
    write('deep/b', sound)
    return problems


def test_sound_label_maps_give_no_sentence(labels):
    assert labels() == []
    palette = Image.fromarray(labels.sound, 'P')
    palette.putpalette(list(range(256)) * 3)
    palette.save(labels.folder / 'labels' / 'a.png')
    assert labels() == []


def test_values_beyond_the_classes(labels):
    (sentence,) = labels(num_classes=2)
    assert 'values beyond the classes in 2 label maps' in sentence and "a.png' (2)" in sentence
    assert '0 to 1, and 255 for none' in sentence
    assert labels(num_classes=2, reduce_zero_label=True) == []
    (sentence,) = labels(num_classes=1, reduce_zero_label=True)
    assert '1 to 1, and 0 or 255 for none' in sentence
    labels.write('a', labels.sound.astype(np.uint16) * 100)  # 16 bits: would wrap around when it is read as 8
    assert "a.png' (100, 200, 25500)" in labels()[0]


def test_label_maps_that_do_not_fit(labels):
    labels.write('a', np.zeros((10, 20), np.uint8))
    (sentence,) = labels()
    assert "a.png', 10 x 20 instead of 30 x 40 of" in sentence and 'a.jpg' in sentence
    labels.write('a', np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert '3 channels instead of class numbers' in labels()[0]
    (labels.folder / 'labels/a.png').write_bytes(b'no picture')
    assert 'no readable label map' in labels()[0]
    (labels.folder / 'images/a.jpg').write_bytes(b'no picture')
    assert 'no readable picture' in labels()[0]
    assert len(labels(num_images=2)) == 1 and labels(num_images=0) == []
    for name in ('images/a.jpg', 'labels/a.png'):
        claim(labels.folder / name, 20000, 19000, 'L')
    (sentence,) = labels()
    assert 'too many pixels to be read' in sentence and 'a.png' in sentence and 'into tiles (' in sentence


def test_names_that_have_no_partner(labels):
    write_image(labels.folder / 'images/c.jpg')
    write_image(labels.folder / 'images/d.JPG')
    labels.write('d', labels.sound)
    without_label, without_image = labels(num_images=0)
    assert "no label map for image 'c.jpg'" in without_label
    assert "no image for label map 'd.png'" in without_image


def test_folders_and_suffixes(labels):
    assert 'does not exist' in label_map_problems(labels.folder / 'x', labels.folder / 'labels', 3)[0]
    assert 'label folder' in label_map_problems(labels.folder / 'images', labels.folder / 'x', 3)[0]
    (sentence,) = labels(image_suffix='.jpeg')
    assert "no image file '*.jpeg'" in sentence and 'end in .jpg' in sentence
    for name in ('a', 'deep/b'):
        path = labels.folder / 'labels' / name
        path.with_suffix('.png').rename(path.with_name(f'{path.name}_mask.png'))
    assert labels(label_suffix='_mask.png') == []


def test_evenly_spread():
    assert evenly_spread(list(range(9)), 3) == [0, 4, 8]
    assert evenly_spread(list(range(3)), 8) == evenly_spread(list(range(3)), None) == [0, 1, 2]
    assert evenly_spread(list(range(3)), 0) == []
