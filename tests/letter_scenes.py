"""A labelled set that owes nothing to the demo scenes: printed letters on speckled paper, in COCO's and in mask format.

    python tests/letter_scenes.py OUT [--train 96] [--val 48] [--size 160]

Letters are drawn by Pillow with matplotlib's fonts; polygons come from OpenCV's contours, every third object is an RLE
of pycocotools, category ids have gaps. It stands for somebody's own data, in tests and in the figures of the README.
"""

import argparse
import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle

CLASSES = {3: 'letter A', 7: 'letter K', 20: 'letter S', 41: 'ampersand'}
GLYPHS = {3: 'A', 7: 'K', 20: 'S', 41: '&'}
FONTS = ('DejaVuSans-Bold.ttf', 'DejaVuSerif-Bold.ttf')


def draw_scene(rng: np.random.Generator, size: int) -> tuple[Image.Image, list[tuple[int, np.ndarray]]]:
    """A picture and its objects, later ones on top: (category id, visible pixels (H, W) bool)."""
    paper = rng.integers(150, 235, 3) + rng.normal(0, 12, (size, size, 1))
    picture = Image.fromarray(np.clip(paper, 0, 255).astype(np.uint8))
    objects = []
    for _ in range(rng.integers(2, 6)):
        category = int(rng.choice(list(CLASSES)))
        height = int(rng.integers(size // 4, size // 2))
        path = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / str(rng.choice(FONTS))
        layer = Image.new('L', (size, size))
        place = tuple(int(value) for value in rng.integers(-size // 12, size - height // 2, 2))
        ImageDraw.Draw(layer).text(place, GLYPHS[category], fill=255, font=ImageFont.truetype(str(path), height))
        layer = layer.rotate(float(rng.uniform(-25, 25)), Image.Resampling.BILINEAR)
        pixels = np.asarray(layer) > 127
        if pixels.sum() < 60:
            continue
        picture.paste(tuple(int(value) for value in rng.integers(0, 130, 3)), mask=layer)
        objects = [(other, seen & ~pixels) for other, seen in objects] + [(category, pixels)]
    return picture, [(category, seen) for category, seen in objects if seen.sum() >= 40]


def annotation(number: int, image_id: int, category: int, pixels: np.ndarray) -> dict:
    encoded = rle.encode(np.asfortranarray(pixels.astype(np.uint8)))
    contours, _ = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [contour.ravel().tolist() for contour in contours if len(contour) >= 3]
    segmentation = polygons
    if number % 3 == 0 or not polygons:
        segmentation = {'size': [int(side) for side in encoded['size']], 'counts': encoded['counts'].decode()}
    return dict(
        id=number, image_id=image_id, category_id=category, iscrowd=0, area=float(pixels.sum()),
        bbox=[float(value) for value in rle.toBbox(encoded)], segmentation=segmentation,
    )  # fmt: skip


def write_letters(folder: Path, num_train: int, num_val: int, size: int = 160, seed: int = 0) -> None:
    """`folder`/{train,val}/*.png, {train,val}.json, labels/{train,val}/*.png and classes.txt (background first)."""
    (folder / 'classes.txt').parent.mkdir(parents=True, exist_ok=True)
    (folder / 'classes.txt').write_text('\n'.join(['background', *CLASSES.values()]) + '\n')
    index = {category: i + 1 for i, category in enumerate(CLASSES)}
    for split, count in (('train', num_train), ('val', num_val)):
        images, annotations = [], []
        for name in (folder / split, folder / 'labels' / split):
            name.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture, objects = draw_scene(np.random.default_rng([seed, split == 'val', i]), size)
            picture.save(folder / split / f'page {i:04}.png')
            labels = np.zeros((size, size), np.uint8)
            for category, pixels in objects:
                labels[pixels] = index[category]
                annotations.append(annotation(len(annotations) + 1, 100 + i, category, pixels))
            Image.fromarray(labels).save(folder / 'labels' / split / f'page {i:04}.png')
            images.append(dict(id=100 + i, file_name=f'page {i:04}.png', height=size, width=size))
        categories = [dict(id=category, name=name) for category, name in CLASSES.items()]
        text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
        (folder / f'{split}.json').write_text(text)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--train', type=int, default=96)
    parser.add_argument('--val', type=int, default=48)
    parser.add_argument('--size', type=int, default=160)
    args = parser.parse_args()
    write_letters(args.out, args.train, args.val, args.size)
