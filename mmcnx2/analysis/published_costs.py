"""What papers and official repositories say that our configs' models cost: the one table of these figures.

Touch it to add a row, with its source; not to make a difference disappear. Guarded by
tests/analysis/test_model_cost.py, which counts every row's model anew and holds the two within 2%.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

V2_TABLE_6 = 'arXiv 2301.00808, Table 6'
V2_TABLE_7 = 'arXiv 2301.00808, Table 7'
V2_MODELS = 'arXiv 2301.00808, Tables 14 and 15'
V1_DETECTION = 'facebookresearch/ConvNeXt, object_detection/README.md'
V1_SEGMENTATION = 'facebookresearch/ConvNeXt, semantic_segmentation/README.md'


@dataclass(frozen=True)
class PublishedCost:
    """Parameters in millions and FLOPs (multiply-adds) in billions, as printed; None where nothing is."""

    million_params: float | None
    gflops: float
    source: str


# Pattern of the configs, relative to configs/ -> what was published for their model and image size
PUBLISHED = {
    'coco/mask-rcnn_convnextv2-base_*': PublishedCost(None, 486, V2_TABLE_6),
    'coco/mask-rcnn_convnextv2-large_*': PublishedCost(None, 875, V2_TABLE_6),
    'coco/mask-rcnn_convnextv2-huge_*': PublishedCost(None, 2525, V2_TABLE_6),
    'coco/mask-rcnn_swin-base_*': PublishedCost(None, 497, V2_TABLE_6),
    'coco/mask-rcnn_swin-large_*': PublishedCost(None, 904, V2_TABLE_6),
    'coco/mask-rcnn_convnext-tiny_*': PublishedCost(48, 262, V1_DETECTION),
    'coco/mask-rcnn_convnext-base_*': PublishedCost(None, 486, V2_TABLE_6),
    'coco/mask-rcnn_convnext-large_*': PublishedCost(None, 875, V2_TABLE_6),
    'coco/cascade-mask-rcnn_convnext-tiny_*': PublishedCost(86, 741, V1_DETECTION),
    'coco/cascade-mask-rcnn_convnext-small_*': PublishedCost(108, 827, V1_DETECTION),
    'coco/cascade-mask-rcnn_convnext-base_*': PublishedCost(146, 964, V1_DETECTION),
    'coco/cascade-mask-rcnn_convnext-large_*': PublishedCost(255, 1354, V1_DETECTION),
    'ade20k/upernet_convnextv2-base_*-512x512.py': PublishedCost(122, 1170, V2_TABLE_7),
    'ade20k/upernet_convnextv2-large_*-512x512.py': PublishedCost(235, 1573, V2_TABLE_7),
    'ade20k/upernet_convnextv2-huge_*-512x512.py': PublishedCost(707, 3272, V2_TABLE_7),
    'ade20k/upernet_convnextv2-huge_*-640x640.py': PublishedCost(707, 5113, V2_TABLE_7),
    'ade20k/upernet_swin-base_*-512x512.py': PublishedCost(121, 1181, V2_TABLE_7),
    'ade20k/upernet_swin-large_*-512x512.py': PublishedCost(234, 1601, V2_TABLE_7),
    'ade20k/upernet_convnext-tiny_*-512x512.py': PublishedCost(60, 939, V1_SEGMENTATION),
    'ade20k/upernet_convnext-small_*-512x512.py': PublishedCost(82, 1027, V1_SEGMENTATION),
    'ade20k/upernet_convnext-base_*-512x512.py': PublishedCost(122, 1170, V1_SEGMENTATION),
    'ade20k/upernet_convnext-large_*-512x512.py': PublishedCost(235, 1573, V2_TABLE_7),
    'ade20k/upernet_convnext-base_*-640x640.py': PublishedCost(122, 1828, V1_SEGMENTATION),
    'ade20k/upernet_convnext-large_*-640x640.py': PublishedCost(235, 2458, V1_SEGMENTATION),
    'imagenet/convnextv2-atto_*_in1k.py': PublishedCost(3.7, 0.55, V2_MODELS),
    'imagenet/convnextv2-femto_*_in1k.py': PublishedCost(5.2, 0.78, V2_MODELS),
    'imagenet/convnextv2-pico_*_in1k.py': PublishedCost(9.1, 1.37, V2_MODELS),
    'imagenet/convnextv2-nano_*_in1k.py': PublishedCost(15.6, 2.45, V2_MODELS),
    'imagenet/convnextv2-tiny_*_in1k.py': PublishedCost(28.6, 4.47, V2_MODELS),
    'imagenet/convnextv2-base_*_in1k.py': PublishedCost(89, 15.4, V2_MODELS),
    'imagenet/convnextv2-large_*_in1k.py': PublishedCost(198, 34.4, V2_MODELS),
    'imagenet/convnextv2-huge_*_in1k.py': PublishedCost(660, 115, V2_MODELS),
    'imagenet/convnextv2-nano_*_in1k-384px.py': PublishedCost(15.6, 7.21, V2_MODELS),
    'imagenet/convnextv2-tiny_*_in1k-384px.py': PublishedCost(28.6, 13.1, V2_MODELS),
    'imagenet/convnextv2-base_*_in1k-384px.py': PublishedCost(89, 45.2, V2_MODELS),
    'imagenet/convnextv2-large_*_in1k-384px.py': PublishedCost(198, 101.1, V2_MODELS),
    'imagenet/convnextv2-huge_*_in1k-384px.py': PublishedCost(660, 337.9, V2_MODELS),
    'imagenet/convnextv2-huge_*_in1k-512px.py': PublishedCost(660, 600.8, V2_MODELS),
}


def published_cost(name: str) -> PublishedCost | None:
    """The published cost of a config, by its path below configs/ ('coco/x.py'); None when nobody published one."""
    return next((cost for pattern, cost in PUBLISHED.items() if fnmatchcase(name, pattern)), None)
