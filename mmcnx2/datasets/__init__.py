"""Pictures in: unlabelled folders and lists, the reader of picture files, the order of samples; and the demo scenes.

COCO and ADE20K are read by mmdet's and mmsegmentation's own datasets; what may be wrong with them is looked for here.
Imported as a whole by the registries of `mmcnx2/registry.py`; touch this file to add a module that a config can name.
"""
from .check_label_map import CheckLabelMap
from .epoch_seeded_sampler import EpochSeededSampler
from .load_image import LoadImage
from .load_random_resized_crop import LoadRandomResizedCrop
from .resident_images import ResidentImages, whole_batch
from .resumable_batches import ResumableBatches
from .seeded_dataset import SeededDataset
from .seeding import SeededIndex
from .unlabelled_images import UnlabelledImages

__all__ = [
    'CheckLabelMap', 'EpochSeededSampler', 'LoadImage', 'LoadRandomResizedCrop', 'ResidentImages', 'ResumableBatches',
    'SeededDataset', 'SeededIndex', 'UnlabelledImages', 'whole_batch',
]  # fmt: skip
