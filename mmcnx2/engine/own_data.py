"""From a user's files to a config: `own_data` turns a COCO or ADE20K config into one for other classes.

    own_data = dict(                                            # detection: any of configs/coco, demo/mask-rcnn
        train=dict(annotations='my/train.json', images='my/train'),
        val=dict(annotations='my/val.json', images='my/val'))
    own_data = dict(                                            # segmentation: any of configs/ade20k, demo/upernet
        classes='my/classes.txt', reduce_zero_label=False,
        train=dict(images='my/images/train', labels='my/labels/train'),
        val=dict(images='my/images/val', labels='my/labels/val'))

The same as `--cfg-options own_data.train.annotations=my/train.json ...`. Class names are read from the files, the class
count goes wherever a config of ours states it, and the files are checked first (mmcnx2/datasets/annotation_checks.py);
`own_data.check=False` leaves the check out. `own_data` stays in the config, with the names that were read, so that the
dumped config works with tools/test.py as it is.
Touch this file for where a config states data or classes; not for what may be wrong with files. Guarded by
tests/engine/test_own_data.py and, in whole runs, tests/test_own_data_runs.py.
"""

import colorsys
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmcnx2.datasets.annotation_checks import (
    class_names,
    label_map_problems,
    names_in,
    problems_of_coco,
    read_coco,
    stems_in,
)

from .config_nodes import dicts_in, innermost_dataset, value_at

SPLITS = ('train', 'val', 'test')
KEYS = dict(
    mmdet=dict(top=('train', 'val', 'test', 'classes', 'check'), split=('annotations', 'images'), optional=()),
    mmseg=dict(
        top=('train', 'val', 'test', 'classes', 'check', 'reduce_zero_label'),
        split=('images', 'labels'),
        optional=('image_suffix', 'label_suffix'),
    ),
)
IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
HEADS = ('bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')  # have a class count, whether or not it is written
# What a dataset keeps of the config's own besides its pipeline; the rest describes other files
KEPT = ('pipeline', 'test_mode', 'indices', 'filter_cfg', 'lazy_init', 'serialize_data', 'max_refetch')
NUM_OPENED = 48  # files of each split whose sizes and values are looked at before training
NUM_PROBLEMS_SHOWN = 10
MAX_LABEL_CLASSES = 254


def apply_own_data(cfg: Config, training: bool = True, options: dict | None = None) -> str | None:
    """Points a config at the files of its `own_data` and sets its classes, in place; None when it has none.

    Applying it twice is the same as once. Test data are those of `val` unless `own_data.test` is given.

    Args:
        cfg: whole config, of detection (mmdet, CocoMetric) or segmentation (mmseg).
        training: checks the files of train and val; else those that testing reads.
        options: what the command line changed in `cfg`, by dotted key. The ann_file of a dataset, which a subset of the
            training images sets, takes the place of own_data's; other settings that own_data decides are refused.

    Returns:
        What was found, for the user to read: classes and number of images.

    Raises:
        ValueError, FileNotFoundError: `own_data` is incomplete or has unknown keys; the config is of another task or
            has several datasets in one loader; the files have mistakes (the first ten are named).
    """
    own = cfg.get('own_data')
    if own is None:
        return None
    scope = cfg.get('default_scope')
    if scope not in KEYS:
        raise ValueError(
            f'own_data works for detection (mmdet) and segmentation (mmseg); this config is of {scope!r}. Folders of '
            'images by class: train_dataloader.dataset.type=CustomDataset with its data_prefix'
        )
    _check_keys(own, scope)
    options = {key: value for key, value in (options or {}).items() if '.pipeline.' not in key}
    for split in SPLITS if scope == 'mmdet' else ():
        for key, value in options.items():
            if key.startswith(f'{split}_dataloader.dataset') and key.endswith('.ann_file') and split in own:
                own[split].annotations = value
    before = {key: value_at(cfg, key) for key in options if key.split('.')[0] != 'own_data'}
    files = {split: own[split] for split in SPLITS if split in own}
    files.setdefault('test', files['val'])
    apply = _apply_to_detection if scope == 'mmdet' else _apply_to_segmentation
    summary = apply(cfg, own, files, training)
    _set_class_count(cfg.model, len(own.classes))
    overruled = [key for key, value in before.items() if value_at(cfg, key) != value]
    if overruled:
        raise ValueError(f'own_data decides {", ".join(overruled)} itself; leave out the option, or own_data')
    if cfg.get('load_from') and training and not cfg.get('resume'):
        summary += f'; of {cfg.load_from}, layers of another size are left out (printed as "size mismatch")'
    return summary


def check_class_lists(cfg: Config, training: bool = True) -> None:
    """Raises ValueError when a CocoDataset has classes written by hand that its file does not have, in its order.

    mmdet would leave the annotations of a misspelt class out and number the others anew, without a word. A list that
    leaves classes of the file out on purpose is fine. Files that do not exist are left to mmdet to report.
    """
    for split in ('train', 'val') if training else ('test',):
        dataset = innermost_dataset((cfg.get(f'{split}_dataloader') or {}).get('dataset') or {})
        classes = (dataset.get('metainfo') or {}).get('classes')
        path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
        if not str(dataset.get('type')).endswith('CocoDataset') or not isinstance(classes, list | tuple):
            continue
        if not path.is_file():
            continue
        names = class_names(json.loads(path.read_bytes()))
        if [name for name in names if name in classes] != list(classes):
            raise ValueError(
                f"{split}_dataloader: classes {', '.join(classes)} are not among the `categories` of '{path}' in their "
                f'order, {", ".join(names)}. mmdet would leave annotations out or mix up names: write the names as the '
                'file does, or let own_data read them'
            )


def read_class_names(source: str | Path | list | tuple) -> tuple[str, ...]:
    """Class names in the order of their numbers: of a text file (one per line), a JSON list, or the list itself."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"own_data.classes is '{source}', which does not exist; give a text file with one name per line, or a "
                'JSON list'
            )
        text = path.read_text(encoding='utf-8-sig')
        try:
            names = json.loads(text) if path.suffix == '.json' else [line.strip() for line in text.splitlines()]
        except ValueError as error:
            raise ValueError(f"'{path}' is not JSON: {error}. It must be a list of names") from error
        names = [name for name in names if name] if isinstance(names, list) else names
    else:
        names = list(source)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f'own_data.classes={source!r} gives no list of names: one per class, in the order of numbers')
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ValueError(f'own_data.classes={source!r} names a class twice: {", ".join(twice)}')
    return tuple(names)


def find_suffixes(image_folder: str | Path, label_folder: str | Path) -> tuple[str, str]:
    """Endings of images and label maps: ('.jpg', '_mask.png') for a.jpg and a_mask.png.

    Which files count is as in the check and in mmsegmentation: links to folders are followed, hidden files passed over.

    Raises:
        FileNotFoundError, ValueError: a folder does not exist; none or several kinds of images; no label belongs to an
            image.
    """
    for folder, key in ((image_folder, 'images'), (label_folder, 'labels')):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"own_data: {key}='{folder}' is not a folder; give its path")
    images = [name for name in names_in(image_folder) if name.lower().endswith(IMAGE_EXTENSIONS)]
    kinds = Counter(Path(name).suffix for name in images)
    if len(kinds) != 1:
        found = ', '.join(f'{number} {suffix}' for suffix, number in kinds.most_common()) or 'none'
        raise ValueError(
            f"'{image_folder}' must hold images of one ending; found: {found}. Convert the others (upper and lower "
            'case count), or name the ending to use: image_suffix and label_suffix beside `images`'
        )
    (image_suffix,) = kinds
    endings: Counter[str] = Counter()
    labels = sorted(name for name in names_in(label_folder) if '.' in Path(name).name)
    stems = sorted(name.removesuffix(image_suffix) for name in images)
    for stem in stems[:NUM_OPENED]:
        endings.update(name[len(stem) :] for name in labels if name.startswith(stem))
    if not endings:
        raise ValueError(
            f"no file in '{label_folder}' begins as an image of '{image_folder}' does, such as '{stems[0]}'. A label "
            "map has its image's name; or give image_suffix and label_suffix beside `images`"
        )
    return image_suffix, max(sorted(endings, key=len), key=endings.get)


def palette(num_classes: int) -> list[tuple[int, int, int]]:
    """A colour for each class, far apart for neighbours, always the same."""
    golden = 0.618033988749895
    return [
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * golden % 1, 0.85, (1.0, 0.7)[number % 2]))
        for number in range(num_classes)
    ]


# ---- detection


def _apply_to_detection(cfg: Config, own: ConfigDict, files: dict, training: bool) -> str:
    read = {split: read_coco(files[split].annotations) for split in (('train', 'val') if training else ('test',))}
    if own.check:
        needs_masks = any(node.get('with_mask') for node in dicts_in(cfg)) or 'segm' in str(cfg.get('val_evaluator'))
        _stop_at(
            problem
            for split, coco in read.items()
            for problem in problems_of_coco(
                coco, files[split].annotations, files[split].images, NUM_OPENED, needs_masks
            )
        )
    if 'classes' not in own:
        train_file = files['train'].annotations
        known = read['train'] if training else read_coco(train_file) if Path(train_file).is_file() else read['test']
        own.classes = list(class_names(known))
    own.classes = list(read_class_names(own.classes))
    for split, coco in read.items():
        if list(class_names(coco)) != own.classes:
            raise ValueError(
                f"'{files[split].annotations}': its `categories` are {', '.join(class_names(coco))}; the classes of "
                f'this run are {", ".join(own.classes)}. mmdet numbers classes in the order of the file: write the '
                'same `categories`, in the same order, into the files of train and val'
            )
    for split in SPLITS:
        dataset = _dataset(cfg, split)
        if dataset.get('filter_cfg'):
            dataset.filter_cfg.pop('min_size', None)  # 32 px for COCO: other data may be smaller throughout
        _replace(
            dataset,
            type='CocoDataset',
            data_root='',
            ann_file=files[split].annotations,
            data_prefix=dict(img=files[split].images),
            metainfo=dict(classes=tuple(own.classes), palette=palette(len(own.classes))),
        )
    for split in ('val', 'test'):
        evaluators = cfg.get(f'{split}_evaluator')
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        metrics = [one for one in evaluators if one and str(one.get('type')).endswith('CocoMetric')]
        if not metrics:
            raise ValueError(f'own_data needs a {split}_evaluator of type CocoMetric; this config has {evaluators}')
        for metric in metrics:
            metric.ann_file = files[split].annotations
    return _summary(own, {split: len(coco['images']) for split, coco in read.items()})


# ---- segmentation


def _apply_to_segmentation(cfg: Config, own: ConfigDict, files: dict, training: bool) -> str:
    if 'classes' not in own:
        raise ValueError(
            'own_data.classes is missing: a text file with one name per line, in the order of the numbers in the label '
            'maps, or a JSON list'
        )
    own.classes = list(read_class_names(own.classes))
    num_classes, reduced = len(own.classes), own.setdefault('reduce_zero_label', False)
    if not 2 <= num_classes <= MAX_LABEL_CLASSES:
        raise ValueError(
            f'own_data has {num_classes} classes; label maps of 8 bits hold 2 to {MAX_LABEL_CLASSES}, and the '
            'background is a class of its own'
        )
    if not isinstance(reduced, bool):
        raise ValueError(f'own_data.reduce_zero_label={reduced!r} must be True or False')
    used = ('train', 'val') if training else ('test',)
    for split in used:
        given = files[split]
        if ('image_suffix' in given) != ('label_suffix' in given):
            raise ValueError(f'own_data.{split} has one of image_suffix and label_suffix; give both or none')
        if 'image_suffix' not in given:
            given.image_suffix, given.label_suffix = find_suffixes(given.images, given.labels)
    if own.check:
        _stop_at(
            problem
            for split in used
            for problem in label_map_problems(
                **_renamed(files[split]), num_classes=num_classes, reduce_zero_label=reduced, num_images=NUM_OPENED
            )
        )
    for split in SPLITS:
        given = files[split]
        dataset = _dataset(cfg, split)
        _replace(
            dataset,
            type='BaseSegDataset',
            data_root='',
            data_prefix=dict(img_path=given.images, seg_map_path=given.labels),
            img_suffix=given.get('image_suffix', '.jpg'),
            seg_map_suffix=given.get('label_suffix', '.png'),
            reduce_zero_label=reduced,
            metainfo=dict(classes=tuple(own.classes), palette=palette(num_classes)),
            **({'ann_file': dataset.ann_file} if dataset.get('ann_file') else {}),  # a list of names: a subset
        )
        dataset.pipeline = _checked_pipeline(dataset.pipeline, num_classes)
    for node in dicts_in([cfg[f'{split}_dataloader'] for split in SPLITS] + [cfg.get('tta_pipeline', [])]):
        if str(node.get('type')).endswith('LoadAnnotations') and 'reduce_zero_label' in node:
            node.reduce_zero_label = reduced
    return _summary(own, {split: len(stems_in(files[split].images, files[split].image_suffix)) for split in used})


def _renamed(given: dict) -> dict:
    """images, labels of a split as image_folder, label_folder, which the checks call them."""
    names = dict(images='image_folder', labels='label_folder')
    return {names.get(key, key): value for key, value in given.items()}


def _checked_pipeline(pipeline: list, num_classes: int) -> list:
    """The pipeline with one CheckLabelMap of that many classes right after its LoadAnnotations."""
    steps = []
    for step in pipeline:
        if step.type == 'mmcnx2.CheckLabelMap':
            continue
        steps.append(step)
        if step.type.endswith('LoadAnnotations'):
            steps.append(ConfigDict(type='mmcnx2.CheckLabelMap', num_classes=num_classes))
    return steps


# ---- both


def _check_keys(own: ConfigDict, scope: str) -> None:
    keys = KEYS[scope]
    example = ' '.join(f'own_data.{split}.{key}=PATH' for split in ('train', 'val') for key in keys['split'])
    if not isinstance(own, dict):
        raise ValueError(f'own_data={own!r} must be a dict: {example}')
    unknown = sorted(set(own) - set(keys['top']))
    for split in SPLITS:
        if split not in own:
            continue
        if not isinstance(own[split], dict):
            raise ValueError(f'own_data.{split}={own[split]!r} must be a dict: {example}')
        unknown += [f'{split}.{key}' for key in sorted(set(own[split]) - {*keys['split'], *keys['optional']})]
    if unknown:
        allowed = [*keys['top'], *(f'SPLIT.{key}' for key in (*keys['split'], *keys['optional']))]
        raise ValueError(f'own_data has unknown keys: {", ".join(unknown)}. Allowed here: {", ".join(allowed)}')
    missing = [
        f'own_data.{split}.{key}'
        for split in SPLITS
        for key in keys['split']
        if (split in own or split != 'test') and key not in own.get(split, {})
    ]
    if missing:
        raise ValueError(
            f'own_data is incomplete, missing: {", ".join(missing)}. Training and validation both need their files, '
            f'for example {example}'
        )
    for split in (split for split in SPLITS if split in own):
        for key in keys['split']:
            own[split][key] = str(Path(str(own[split][key])).expanduser())
    if not isinstance(own.setdefault('check', True), bool):
        raise ValueError(f'own_data.check={own.check!r} must be True or False')


def _stop_at(problems: Iterable[str]) -> None:
    problems = list(problems)
    if not problems:
        return
    lines = [f'({number}) {problem}' for number, problem in enumerate(problems[:NUM_PROBLEMS_SHOWN], 1)]
    if len(problems) > NUM_PROBLEMS_SHOWN:
        lines.append(f'and {len(problems) - NUM_PROBLEMS_SHOWN} more')
    things = 'a problem' if len(problems) == 1 else f'{len(problems)} problems'
    lines.insert(0, f'own_data has {things} (own_data.check=False trains in spite of it, where that is possible):')
    raise ValueError('\n'.join(lines))


def _dataset(cfg: Config, split: str) -> ConfigDict:
    """The dataset of a loader, inside wrappers such as RepeatDataset."""
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise ValueError(f'own_data needs a config with a {split}_dataloader; this one has none')
    dataset = innermost_dataset(loader.dataset)
    if 'datasets' in dataset:
        raise ValueError(
            f'{split}_dataloader has {len(dataset.datasets)} datasets in one ({dataset.get("type")}), and own_data '
            'cannot know which files are for which. Join the files, or take a config with one dataset'
        )
    return dataset


def _replace(dataset: ConfigDict, **options: object) -> None:
    """Other files for a dataset: `options`, and of its own what does not belong to its files."""
    kept = {key: dataset[key] for key in KEPT if key in dataset}
    dataset.clear()
    dataset.update(options)
    dataset.update(kept)


def _set_class_count(model: ConfigDict, num_classes: int) -> None:
    found = 0
    for key, head in _heads(model):
        if key not in HEADS and 'num_classes' not in head:
            continue
        head.num_classes = num_classes
        found += 1
        weights = [loss.class_weight for loss in dicts_in(head) if isinstance(loss.get('class_weight'), list | tuple)]
        if any(len(weight) not in (num_classes, num_classes + 1) for weight in weights):
            raise ValueError(
                f'{key} weighs {len(weights[0])} classes (class_weight), own_data has {num_classes}. Give as many '
                'weights, or class_weight=None'
            )
    if not found:
        raise ValueError('own_data finds no head with num_classes in this model; set its class count yourself')


def _heads(node: object, key: str = 'model') -> Iterator[tuple[str, ConfigDict]]:
    """(key, dict) of every part of a model that may count classes; a list gives its key to each of its parts.

    The backbone, which may have a classifier of its own, and the RPN, which tells object from background, do not.
    """
    if isinstance(node, dict):
        yield key, node
        for name, child in node.items():
            if name not in ('backbone', 'rpn_head', 'data_preprocessor'):
                yield from _heads(child, name)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _heads(child, key)


def _summary(own: ConfigDict, numbers: dict[str, int]) -> str:
    images = ', '.join(f'{number:,} images in {split}' for split, number in numbers.items())
    names = ', '.join(own.classes[:8]) + (' ...' if len(own.classes) > 8 else '')
    return f'own_data: {len(own.classes)} classes ({names}){", " if images else ""}{images}'
