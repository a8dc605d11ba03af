"""Step 3 of unlabelled data: the dataset of pretraining, pictures without labels that survives bad files.

files (image_files.py) --> LoadRandomResizedCrop or LoadImage, augmentations, PackInputs (the pipeline)
                                                                                   --> dict(inputs, data_samples)

Touch this file for what happens to a file that cannot be read and for how a sample's seed is used; not for reading
files (load_image.py, load_random_resized_crop.py) or for their order (epoch_seeded_sampler.py). Guarded by
tests/datasets/test_unlabelled_images.py.
"""
from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from mmcnx2.registry import DATASETS

from .image_files import EXTENSIONS, find_images, printable
from .load_image import KINDS, UnreadableImage, check_header
from .seeding import SeededIndex, derive_seed, seeded_randomness
from .shrunken_copies import check_complete

UNTRIED, GOOD, BAD = 0, 1, 2  # from BAD on: BAD + place among KINDS of what is wrong
NUM_FILES_JUDGED = 1000  # the share of bad files is taken over at least so many, or the whole dataset
NUM_NAMED = 5
CHANCE_OF_FALSE_STOP = 1e-12


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """Pictures of a folder, a list file or a glob, through a pipeline that begins with mmcnx2's own loaders.

    A file that cannot be read is named once in the log, with the reason and the count so far, and another picture of
    the set takes its place; which one follows from the sample's seed (or its index), not from what happened before.
    All workers of a process share what they know about files; mmcnx2.SkippedImagesHook reports it. When the folder
    that holds all files has gone, training stops at once.

    An index of mmcnx2.EpochSeededSampler carries a seed: the pipeline then draws from it, so that the sample does not
    depend on workers, processes or the order of a batch, and the packed data sample gets it as metainfo `sample_seed`
    (FCMAE draws its mask from it).

    Args:
        source: folder, list file or glob; see image_files.find_images, also for data_root and extensions.
        pipeline: transforms; mmcnx2.LoadRandomResizedCrop or mmcnx2.LoadImage first, mmpretrain.PackInputs last.
        data_root: where relative sources start.
        extensions: endings of the files in a folder or a glob that count as pictures.
        max_bad_share: in [0, 1]; training stops when more than this share of the files asked for is bad. It is judged
            over at least 1,000 files (or all, when there are fewer), so that a few early ones do not stop a long run.
        check_files: look at the header of every file at the start (bad ones are named then, and the share is judged
            over all). It finds files that are no pictures, are empty or too large, not those whose pixels are broken.
        test_mode: a bad file raises ValueError instead of being replaced.
        indices, metainfo, lazy_init: as mmengine's BaseDataset.

    Raises:
        FileNotFoundError, ValueError: the source does not exist, or holds no picture; a setting is out of its range.
        ValueError: the source is a folder of copies of which not all have been made (tools/shrink_images.py).
        ValueError: from an access, when too many files are bad; FileNotFoundError, when their folder has gone.
    """

    METAINFO = dict(dataset_type='unlabelled')

    def __init__(self, source: str | Path, pipeline: Sequence[dict | Callable] = (), data_root: str | Path = '',
                 extensions: Sequence[str] = EXTENSIONS, max_bad_share: float = 0.1, check_files: bool = False,
                 test_mode: bool = False, indices: int | Sequence[int] | None = None, metainfo: dict | None = None,
                 lazy_init: bool = False) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f'max_bad_share={max_bad_share} is a share of files: between 0 (none may be bad) and 1.')
        self.source, self.extensions = source, extensions
        self.max_bad_share, self.check_files = max_bad_share, check_files
        self._folder = ''  # around all files, when there is one
        super().__init__(data_root=str(data_root), data_prefix={}, metainfo=metainfo, indices=indices,
                         pipeline=list(pipeline), test_mode=test_mode, lazy_init=lazy_init)

    def load_data_list(self) -> list[dict]:
        paths = find_images(self.source, self.data_root, self.extensions)
        self._folder = _common_folder(paths)
        if self._folder:
            check_complete(self._folder)
        return [dict(img_path=path) for path in paths]

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        super().full_init()
        self._forget_files()
        if self.check_files:
            self._check_all_headers()

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        super().get_subset_(indices)
        self._forget_files()

    def get_subset(self, indices: Sequence[int] | int) -> UnlabelledImages:
        subset = super().get_subset(indices)
        subset._forget_files()
        return subset

    @property
    def bad_files(self) -> list[str]:
        """Paths found bad so far, by this process and its workers."""
        return list(self.files_by_state(self._file_states))

    @property
    def file_states(self) -> torch.Tensor:
        """What is known of each file by this process and its workers, one byte each: the larger, the worse."""
        return self._file_states.clone()

    def files_by_state(self, states: torch.Tensor) -> dict[str, str]:
        """{path: what is wrong} of the bad files, given `file_states`: these, or the maximum over several processes."""
        return {self._path(index): KINDS[states[index] - BAD] for index in (states >= BAD).nonzero()[:, 0].tolist()}

    def __getitem__(self, index: int) -> dict:
        if not self._fully_initialized:
            self.full_init()
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {int(index)} of {len(self)} pictures')
        seed = index.seed if isinstance(index, SeededIndex) else None
        first = int(index) % len(self)
        for attempt in range(self._max_attempts()):
            candidate = first if attempt == 0 else derive_seed(first if seed is None else seed, attempt) % len(self)
            if self._file_states[candidate] < BAD or self.test_mode:
                packed = self._prepare(candidate, seed)
                if packed is not None:
                    return packed
        raise ValueError(self._too_many(f'{self._max_attempts()} files in a row'))

    def _prepare(self, index: int, seed: int | None) -> dict | None:
        """The sample of one file; None when it is bad."""
        info = self.get_data_info(index)
        try:
            with contextlib.nullcontext() if seed is None else seeded_randomness(seed):
                packed = self.pipeline(copy.copy(info))
            if packed is None:
                raise UnreadableImage('a transform of the pipeline returned None', 'rejected by a transform')
        except (UnreadableImage, OSError) as error:
            if self.test_mode:
                raise ValueError(f"'{info['img_path']}' cannot be used: {error}. In test mode no other picture takes "
                                 'its place; mend or remove the file.') from error
            self._check_folder(error)
            self._note_bad(index, error)
            self._judge_share()
            return None
        if self._file_states[index] == UNTRIED:
            self._file_states[index] = GOOD
        if seed is not None and isinstance(packed.get('data_samples'), BaseDataElement):
            packed['data_samples'].set_metainfo(dict(sample_seed=seed))
        return packed

    def _check_folder(self, error: Exception) -> None:
        """Raises when files cannot be opened because the folder around all of them is no longer there."""
        if self._folder and not os.path.isdir(self._folder):
            raise FileNotFoundError(
                f"the folder '{self._folder}' with the pictures has gone or cannot be reached; "
                f'{len(self) - self._count(UNTRIED)} of its {len(self)} files had been read. Bring it back and go on '
                'with --resume.') from error

    def _note_bad(self, index: int, error: Exception) -> None:
        if self._file_states[index] >= BAD:  # another worker was quicker
            return
        self._file_states[index] = BAD + KINDS.index(getattr(error, 'kind', 'rejected by a transform'))
        path = printable(self._path(index))
        print_log(f"skipped a bad file ({self._count(BAD)} so far): '{path}': {error}. Another picture takes its "
                  f'place; training stops when more than max_bad_share={self.max_bad_share} are bad.',
                  'current', logging.WARNING)

    def _judge_share(self) -> None:
        num_bad, num_seen = self._count(BAD), len(self) - self._count(UNTRIED)
        if num_bad > self.max_bad_share * max(num_seen, min(len(self), NUM_FILES_JUDGED)):
            raise ValueError(self._too_many(
                f'{num_bad} of the {num_seen} files seen so far ({num_bad / num_seen:.1%})'))

    def _count(self, state: int) -> int:
        states = self._file_states
        return int((states >= BAD if state == BAD else states == state).sum())

    def _too_many(self, how_many: str) -> str:
        bad_files = self.files_by_state(self._file_states)
        named = ', '.join(f"'{path}'" for path in list(bad_files)[:NUM_NAMED])
        kinds = ', '.join(f'{count} {kind}' for kind, count in Counter(bad_files.values()).most_common())
        return (f'{how_many} cannot be used ({kinds}), more than max_bad_share={self.max_bad_share} allows. '
                f'The first: {named}; '
                'the log gives the reason of each. Mend or remove them, or raise max_bad_share of the dataset.')

    def _max_attempts(self) -> int:
        """How many files may be bad one after the other before that is no accident at the share allowed."""
        if self.test_mode or self.max_bad_share == 0:
            return 1
        if self.max_bad_share == 1:
            return 100 * len(self)
        return math.ceil(math.log(CHANCE_OF_FALSE_STOP) / math.log(self.max_bad_share))

    def _check_all_headers(self) -> None:
        def reason_of(index: int) -> UnreadableImage | None:
            try:
                check_header(self._path(index))
            except UnreadableImage as error:
                return error
            return None

        with ThreadPoolExecutor(16) as pool:  # it waits for the disk, or the network behind it
            for index, reason in enumerate(pool.map(reason_of, range(len(self)), chunksize=64)):
                if reason:
                    self._note_bad(index, reason)
                else:
                    self._file_states[index] = GOOD
        self._judge_share()

    def _forget_files(self) -> None:
        # one byte per file, in memory that the workers of a DataLoader share
        self._file_states = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    def _path(self, index: int) -> str:
        return self.get_data_info(index)['img_path']


def _common_folder(paths: list[str]) -> str:
    """The deepest folder that holds all files; '' when relative and absolute paths are mixed."""
    try:
        common = os.path.commonpath([min(paths), max(paths)])  # what these two share, all others share too
    except ValueError:
        return ''
    return os.path.dirname(common) if len(paths) == 1 else common
