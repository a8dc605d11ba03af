"""The report at the end of training: which pictures could not be used, how many, and what is wrong with them.

Touch this file for how it is said; not for what makes a file unusable (mmcnx2/datasets/load_image.py) or when training
stops because of it (mmcnx2/datasets/unlabelled_images.py). Guarded by tests/engine/test_skipped_images.py.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log

from mmcnx2.atomic_write import write_atomically
from mmcnx2.datasets.image_files import printable
from mmcnx2.datasets.unlabelled_images import UNTRIED, UnlabelledImages
from mmcnx2.registry import HOOKS

FILE = 'skipped_images.txt'
NUM_NAMED = 5


@HOOKS.register_module()
class SkippedImagesHook(Hook):
    """Writes WORK_DIR/skipped_images.txt, a line `kind<TAB>path` per file, and its summary into the log.

    For training sets that are, or wrap, mmcnx2.UnlabelledImages; others are left alone. The file is written anew after
    every epoch and at the end, from what all workers of all processes met; with --resume, what the run knew before it
    was interrupted is kept for files not tried since. The log gets the summary at the end of training.
    """

    priority = 'LOW'

    def before_train(self, runner) -> None:
        self._datasets = list(_unlabelled(runner.train_dataloader.dataset))
        path = Path(runner.work_dir) / FILE
        self._earlier = _read(path) if getattr(runner, '_resume', False) and path.exists() else {}

    def after_train_epoch(self, runner) -> None:
        self._collect(runner)

    def after_train(self, runner) -> None:
        skipped = self._collect(runner)
        if skipped:
            named = ', '.join(f"'{printable(path)}'" for path in list(skipped)[:NUM_NAMED])
            num_images = sum(len(dataset) for dataset in self._datasets)
            print_log(
                f'{len(skipped)} of {num_images} pictures could not be used, others took their places: '
                f'{summary(skipped)}. All of them stand in {Path(runner.work_dir) / FILE}, the first: {named}',
                'current',
                logging.WARNING,
            )

    def _collect(self, runner) -> dict[str, str]:
        """{path: kind} of all processes, also written to the file; nothing is written when there is nothing to say."""
        skipped = {}
        for dataset in self._datasets:
            states = dataset.file_states
            all_reduce(states, op='max')
            skipped.update(dataset.files_by_state(states))
            untried = (states == UNTRIED).nonzero()[:, 0].tolist() if self._earlier else []
            paths = (dataset.get_data_info(index)['img_path'] for index in untried)
            skipped.update({path: self._earlier[path] for path in paths if path in self._earlier})
        path = Path(runner.work_dir) / FILE
        if is_main_process() and (skipped or path.exists()):
            lines = [f'# {len(skipped)} pictures could not be used: {summary(skipped)}']
            write_atomically(path, '\n'.join([*lines, *(f'{kind}\t{path}' for path, kind in skipped.items())]) + '\n')
        return skipped


def summary(skipped: dict[str, str]) -> str:
    """'3 damaged, 1 empty', the most frequent first."""
    return ', '.join(f'{count} {kind}' for kind, count in Counter(skipped.values()).most_common()) or 'none'


def _unlabelled(dataset: object) -> Iterator[UnlabelledImages]:
    """The picture sets inside wrappers, which keep theirs as `dataset` or `datasets`."""
    if isinstance(dataset, UnlabelledImages):
        yield dataset
        return
    for inner in [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', [])]:
        if inner is not None:
            yield from _unlabelled(inner)


def _read(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding='utf-8', errors='surrogateescape').rstrip('\n').split('\n')
    return {path: kind for kind, _, path in (line.partition('\t') for line in lines if line[:1] != '#')}
