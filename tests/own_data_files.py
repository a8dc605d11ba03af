"""Files of somebody with other classes than COCO and ADE20K, for tests of `own_data`.

Drawn with OpenCV's shapes, not by the demo's generator. Category ids have gaps, a name has a space, images are PNG and
JPEG.
"""

import json
from pathlib import Path

import cv2
import numpy as np

CATEGORIES = [dict(id=3, name='red fox'), dict(id=7, name='owl'), dict(id=20, name='vole')]
CLASSES = [category['name'] for category in CATEGORIES]
COLOURS = [(40, 60, 230), (200, 180, 60), (60, 200, 90)]
WIDTH, HEIGHT = 72, 56
SPLITS = dict(train=4, val=2)


def write_coco(folder: Path) -> None:
    """train.json and val.json with the folders train and val beside them."""
    for split, num_images in SPLITS.items():
        rng = np.random.default_rng(num_images)
        content = dict(images=[], categories=CATEGORIES, annotations=[])
        for number in range(num_images):
            image = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            name = f'sub folder/{number}.png'
            content['images'].append(dict(id=100 + number, file_name=name, width=WIDTH, height=HEIGHT))
            for place, category in enumerate(CATEGORIES):
                left, top = 3 + 23 * place, int(rng.integers(2, 26))
                side = int(rng.integers(14, 20))
                points = [[left, top], [left + side, top], [left + side, top + side], [left, top + side // 2]]
                cv2.fillPoly(image, [np.array(points)], COLOURS[place])
                polygon = [float(value) for point in points for value in point]
                content['annotations'].append(
                    dict(
                        id=len(content['annotations']) + 1, image_id=100 + number, category_id=category['id'],
                        bbox=[left, top, side, side], area=side * side * 3 / 4, iscrowd=0, segmentation=[polygon])
                )  # fmt: skip
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
        (folder / f'{split}.json').write_text(json.dumps(content))


def write_label_maps(folder: Path) -> None:
    """images/SPLIT/*.jpeg, labels/SPLIT/*_mask.png with 0 to 2 and 255, classes.txt."""
    for split, num_images in SPLITS.items():
        rng = np.random.default_rng(num_images)
        for kind in ('images', 'labels'):
            (folder / kind / split).mkdir(parents=True)
        for number in range(num_images):
            image = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            label = np.zeros((HEIGHT, WIDTH), np.uint8)
            for value in (1, 2):
                centre = (int(rng.integers(15, 55)), int(rng.integers(15, 40)))
                cv2.circle(image, centre, 12, COLOURS[value], -1)
                cv2.circle(label, centre, 12, value, -1)
            label[:3] = 255
            cv2.imwrite(str(folder / f'images/{split}/p{number}.jpeg'), image)
            cv2.imwrite(str(folder / f'labels/{split}/p{number}_mask.png'), label)
    (folder / 'classes.txt').write_text('\n'.join(CLASSES) + '\n', encoding='utf-8')


def coco_options(folder: Path) -> dict[str, str]:
    return {
        f'own_data.{split}.{key}': str(folder / name)
        for split in SPLITS
        for key, name in (('annotations', f'{split}.json'), ('images', split))
    }


def label_map_options(folder: Path) -> dict[str, str]:
    return {'own_data.classes': str(folder / 'classes.txt')} | {
        f'own_data.{split}.{kind}': str(folder / kind / split) for split in SPLITS for kind in ('images', 'labels')
    }
