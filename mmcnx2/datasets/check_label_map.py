"""A step of segmentation pipelines: a label map that does not fit its image or the classes stops the run by name.

LoadImageFromFile, LoadAnnotations --> CheckLabelMap --> augmentations

Without it the loss fails on a wrong value far from its file, and mmsegmentation's metric takes one without a word.
Touch this file for what is checked in every sample; the same before training, for whole folders: annotation_checks.py.
Guarded by tests/datasets/test_check_label_map.py.
"""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform

from mmcnx2.registry import TRANSFORMS

from .annotation_checks import value_remedy, values_beyond


@TRANSFORMS.register_module()
class CheckLabelMap(BaseTransform):
    """Passes a sample on as it is; place it right after mmseg's LoadAnnotations.

    Args:
        num_classes: a pixel of `gt_seg_map` holds 0 to num_classes - 1, or 255 for no class (counted after
            `reduce_zero_label`; the message counts as the file does).

    Raises:
        ValueError: from `transform`: colours instead of class numbers, another size than the image, values beyond the
            classes. It names both files, what was found, and the remedy.
    """

    def __init__(self, num_classes: int) -> None:
        if not isinstance(num_classes, int) or not 1 <= num_classes <= 254:
            raise ValueError(
                f'num_classes={num_classes!r}: label maps of 8 bits hold 1 to 254 classes; 255 is for pixels of none.'
            )
        self.num_classes = num_classes

    def transform(self, results: dict) -> dict:
        label, (height, width) = results['gt_seg_map'], results['ori_shape'][:2]
        problem = None
        if label.ndim != 2:
            problem = f'has {label.shape[-1]} channels; write one class number per pixel (a gray or a palette PNG)'
        elif label.shape != (height, width):
            problem = (
                f'is {label.shape[0]} x {label.shape[1]}, its image is {height} x {width}; make both from the same '
                'picture (a camera rotation counts)'
            )
        else:
            reduced = bool(results.get('reduce_zero_label'))
            values = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
            beyond = [value + reduced for value in values_beyond(values, self.num_classes)]
            if beyond:
                problem = f'holds {", ".join(map(str, beyond[:5]))}; {value_remedy(self.num_classes, reduced)}'
        if problem:
            raise ValueError(f"label map '{results['seg_map_path']}' of '{results['img_path']}' {problem}")
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_classes={self.num_classes})'
