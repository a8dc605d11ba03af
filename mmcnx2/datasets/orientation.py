"""How a camera was held: from a picture as it is stored to the one that is seen (EXIF and TIFF, tag 274).

Touch this file for turning pictures and parts of them; not for reading them (load_image.py,
load_random_resized_crop.py). Guarded by tests/datasets/test_load_random_resized_crop.py and
tests/datasets/test_load_image.py.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Turn:
    """How a stored picture becomes the one that is seen: rows and columns exchanged, then rows or columns reversed."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        return (width, height) if self.transposed else (height, width)

    def stored_crop(self, crop: Crop, seen_size: tuple[int, int]) -> Crop:
        """The crop of the picture as seen, in the coordinates of the stored one."""
        top = seen_size[0] - crop.top - crop.height if self.rows_reversed else crop.top
        left = seen_size[1] - crop.left - crop.width if self.columns_reversed else crop.left
        return Crop(left, top, crop.width, crop.height) if self.transposed else Crop(top, left, crop.height, crop.width)

    def seen(self, stored_HWC: np.ndarray) -> np.ndarray:
        turned = stored_HWC.transpose(1, 0, 2) if self.transposed else stored_HWC
        return turned[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]


TURNS = {  # EXIF orientation -> turn
    1: Turn(),
    2: Turn(columns_reversed=True),
    3: Turn(rows_reversed=True, columns_reversed=True),
    4: Turn(rows_reversed=True),
    5: Turn(transposed=True),
    6: Turn(transposed=True, columns_reversed=True),
    7: Turn(transposed=True, rows_reversed=True, columns_reversed=True),
    8: Turn(transposed=True, rows_reversed=True),
}


def orientation_of(image: Image.Image) -> int:
    """The camera's rotation, 1 to 8 as in EXIF; 1 (none) when nothing sensible is said."""
    orientation = 1
    with contextlib.suppress(Exception):  # a broken EXIF block must not cost a sound picture
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in TURNS else 1
