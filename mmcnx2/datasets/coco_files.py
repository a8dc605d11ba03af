"""COCO 2017 as a folder: which archives it comes from, and whether a copy is complete.

    {train,val}2017/*.jpg, annotations/instances_{train,val}2017.json

Touch this file for what belongs to COCO; not for how archives are fetched (download.py) or for what may be wrong with
anybody's annotations (annotation_checks.py). Guarded by tests/datasets/test_coco_files.py.
"""

from __future__ import annotations

from pathlib import Path

from .annotation_checks import problems_of_coco, read_coco
from .download import Archive
from .folder_checks import Findings, files_in, missing_sentence

ANNOTATIONS = 'annotations_trainval2017.zip'
# split: (images, annotations) of instances_*.json
NUM_PUBLISHED = dict(train=(118_287, 860_001), val=(5_000, 36_781))
# MD5 as in PaddlePaddle/PaddleDetection (ppdet/utils/download.py); several others give the same. Bytes as the server
# states them, found alike in several public lists.
ARCHIVES = (
    Archive(
        f'http://images.cocodataset.org/annotations/{ANNOTATIONS}',
        'md5:f4bbac642086de4f52a3fdda2de5fa2c',
        252_907_541,
    ),
    Archive(
        'http://images.cocodataset.org/zips/val2017.zip',
        'md5:442b8da7639aecaf257c1dceb8ba8c80',
        815_585_330,
    ),
    Archive(
        'http://images.cocodataset.org/zips/train2017.zip',
        'md5:cced6f7f71b7629ddf16f17bbcfab6b2',
        19_336_861_798,
    ),
)


def training_set(root: str | Path) -> dict:
    """The training set of our configs, as far as a share of it depends on it."""
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )


def check_coco(root: str | Path, num_spot_checks: int = 48) -> Findings:
    """What a copy of COCO 2017 lacks, and what is wrong with `num_spot_checks` of its images and with its annotations.

    With 0 only names and numbers are compared.
    """
    root, found = Path(root), Findings()
    for split, (num_images, num_annotations) in NUM_PUBLISHED.items():
        folder, file = root / f'{split}2017', root / 'annotations' / f'instances_{split}2017.json'
        archive = f'{split}2017.zip'
        remedy = f'unpack {archive}, or run `prepare_data.py coco --download`, which takes what is missing'
        present = files_in(folder, ('.jpg',)) if folder.is_dir() else None
        if present is None:
            found.add(f"folder '{folder}' with {num_images:,} images is missing: {remedy}", archive)
        coco = _read_annotations(file, num_images, num_annotations, found)
        if present is None:
            continue
        if coco is None:
            if len(present) < num_images:
                found.add(f"'{folder}' holds {len(present):,} of {num_images:,} images: {remedy}", archive)
            continue
        missing = missing_sentence(folder, [image['file_name'] for image in coco['images']], present, remedy)
        if missing:
            found.add(missing, archive)
        elif num_spot_checks:
            found.problems += problems_of_coco(coco, file, folder, num_spot_checks)
    looked_at = f'annotations and {num_spot_checks} images per split looked at' if num_spot_checks else 'no spot checks'
    numbers = ', '.join(f'{split} {num_images:,} images' for split, (num_images, _) in NUM_PUBLISHED.items())
    found.summary = f'COCO 2017 in {root} is complete: {numbers}; {looked_at}'
    return found


def _read_annotations(file: Path, num_images: int, num_annotations: int, found: Findings) -> dict | None:
    """The content of the file; None, and a problem, when it is not there or not COCO."""
    again = f'unpack {ANNOTATIONS}, or run `prepare_data.py coco --download`'
    if not file.is_file():
        found.add(f"file '{file}' is missing: {again}", ANNOTATIONS)
        return None
    try:
        coco = read_coco(file)
    except ValueError as error:
        found.add(f'{error}; or {again}', ANNOTATIONS)
        return None
    numbers = len(coco['images']), len(coco['annotations'])
    if numbers != (num_images, num_annotations):
        found.add(
            f"'{file}' lists {numbers[0]:,} images and {numbers[1]:,} annotations, the published file {num_images:,} "
            f'and {num_annotations:,}: {again}',
            ANNOTATIONS,
        )
    return coco
