"""Class folders or a list with labels -> paths and class numbers, for measuring features without a training run.

    FOLDER/cat/**.jpg, FOLDER/dog/**.jpg                      a class per folder, searched at every depth
    list.txt: "cat/1.jpg cat", "dog/7.jpg dog"                a path and a label per line; the label is the last word

Touch this file for where labels come from; not for reading pictures (load_image.py) nor for the datasets that training
uses. Guarded by tests/datasets/test_labelled_images.py.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .folder_checks import folders_in, named
from .image_files import NUM_LINES_LOOKED_AT, components, find_images, lines_of_list


@dataclass(frozen=True)
class LabelledImages:
    """`labels[i]`, a place in `classes`, belongs to `paths[i]`."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def counts(self) -> tuple[int, ...]:
        """Pictures per class."""
        found = Counter(self.labels)
        return tuple(found[label] for label in range(len(self.classes)))


def find_labelled_images(source: str | Path, classes: Sequence[str] | None = None) -> LabelledImages:
    """The pictures that `source` names, with their classes.

    Args:
        source: a folder of class folders, or a text file with a path and a label per line (relative paths start at
            the file's folder; empty lines and those that begin with '#' are passed over).
        classes: the classes of the set that it goes with, in their order; None: its own, sorted by name (as numbers
            when all are whole numbers).

    Raises:
        FileNotFoundError: there is no such folder or file, or none of the first listed pictures exists.
        ValueError: no class, a class without a picture, a line without a label, or a class that `classes` lacks.
    """
    path = os.path.expanduser(os.fspath(source))
    if os.path.isdir(path):
        pairs = _in_class_folders(path)
    elif os.path.isfile(path):
        pairs = _in_list(path)
    else:
        raise FileNotFoundError(
            f"'{source}' does not exist; give a folder that holds a folder per class, or a text file with a path and "
            'a label per line'
        )
    own = sorted({label for _, label in pairs}, key=components)
    if classes is None:
        classes = own
        if all(label.isdecimal() for label in own):
            classes = sorted(own, key=int)
    unknown = [label for label in own if label not in classes]
    if unknown:
        raise ValueError(
            f"'{source}' has {len(unknown)} classes that the training pictures do not have ({named(unknown)}): the "
            'names of folders, or the labels in the lists, must be the same'
        )
    number = {name: index for index, name in enumerate(classes)}
    return LabelledImages(tuple(path for path, _ in pairs), tuple(number[label] for _, label in pairs), tuple(classes))


def _in_class_folders(folder: str) -> list[tuple[str, str]]:
    names = folders_in(folder)
    if not names:
        raise ValueError(f"'{folder}' holds no folders, so no classes: put the pictures of each class into a folder")
    pairs = []
    for name in names:
        try:
            pairs += [(path, name) for path in find_images(os.path.join(folder, name))]
        except ValueError as error:
            raise ValueError(f"class '{name}' of '{folder}' has no pictures: take the folder out") from error
    return pairs


def _in_list(path: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in lines_of_list(path):
        words = line.rsplit(None, 1)
        if len(words) < 2:
            raise ValueError(f"'{path}', line {number}: '{line}' is not a path and a label")
        pairs.append((os.path.join(os.path.dirname(path), os.path.expanduser(words[0])), words[1]))
    if not pairs:
        raise ValueError(f"'{path}' lists no picture")
    looked_at = pairs[:NUM_LINES_LOOKED_AT]
    if not any(os.path.exists(name) for name, _ in looked_at):
        raise FileNotFoundError(
            f"none of the first {len(looked_at)} files of '{path}' exists, for example '{looked_at[0][0]}'; relative "
            'paths start at the folder of the list'
        )
    return pairs
