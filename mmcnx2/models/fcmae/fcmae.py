"""FCMAE: the fully convolutional masked autoencoder of ConvNeXt V2 (arXiv 2301.00808).

images --masking--> visible cells --backbone--> features --neck--> decoded --head--> pixels, loss on hidden cells

Touch this file for the order of these steps only; each has its own file beside this one. Guarded by
tests/models/test_fcmae.py.
"""

from __future__ import annotations

import logging

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor

from mmcnx2.checkpoint import load_pretrained_backbone, load_pretrained_fcmae, pretrained_options
from mmcnx2.registry import MODELS

from ..layers import DenseLayout, Layout, LeakingLayout, MinkowskiLayout, VisibleLayout
from ..layers.layout import check_grn_over, positions_of
from ..layers.minkowski_layout import import_minkowski_engine
from .masking import num_visible_cells, random_visible

LAYOUTS = {
    'visible': VisibleLayout,
    'dense': DenseLayout,
    'minkowski': MinkowskiLayout,
    'leaking': LeakingLayout,
}


@MODELS.register_module()
class FCMAE(BaseModel):
    """Masked image modelling with a convolutional encoder that computes on visible cells only, in mmpretrain's
    conventions.

    The backbone is the ordinary one: the `backbone.*` entries of a checkpoint are a backbone checkpoint. It has no
    output norms here, so every parameter of the model gets a gradient.

    Args:
        backbone: config of a backbone written against layouts; out_norm=False is set, and which maps the decoder takes:
            the last one, or all for a decoder with skips=True.
        neck: config of the decoder; its in_channels (and skip_channels) are filled in, and the backbone's kernels.
        head: config of the head; in_channels, image_channels and stride are filled in.
        mask_ratio: share of hidden cells, in (0, 1); the number of visible cells is rounded down.
        patch_size: pixels per side of a cell; a multiple of the backbone's total stride.
        layout: 'visible' computes visible cells only; 'dense' computes the whole masked map, slower, with equal
            results; 'minkowski' goes through the library of the official code, with equal results, on the
            CPU and after `make minkowski`; 'leaking' hides cells in the image only, after which they fill up (the
            paper's comparison, no use otherwise).
        grn_over: 'image' (paper, released weights) or 'batch' (the released PyTorch code).
        data_preprocessor: config, for example mmpretrain.SelfSupDataPreprocessor with mean and std.
        init_cfg: dict(type='Pretrained', checkpoint=PATH) loads encoder and decoder, strictly, from a pretraining run
            of ours or of the official code; further keys are passed to `load_pretrained_fcmae`. None as PATH: random
            weights, and a line in the log that says so. The encoder alone is loaded by the backbone's init_cfg.

    Raises:
        ValueError: a setting is out of its range.
        ImportError: layout='minkowski' without MinkowskiEngine.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict | None = None,
        head: dict | None = None,
        mask_ratio: float = 0.6,
        patch_size: int = 32,
        layout: str = 'visible',
        grn_over: str = 'image',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if layout not in LAYOUTS:
            raise ValueError(f"layout='{layout}' is not known; choose one of {tuple(LAYOUTS)}.")
        if layout == 'minkowski':
            import_minkowski_engine()  # when it is missing, say so here and not in the first step
        if not 0 < mask_ratio < 1:
            raise ValueError(
                f'mask_ratio={mask_ratio} hides {"everything" if mask_ratio >= 1 else "nothing"}; '
                'choose a share between 0 and 1 (the paper: 0.6).'
            )
        if backbone.get('out_norm'):
            raise ValueError(
                'backbone.out_norm=True: its norms would get no gradient in pretraining. Leave it out; the detector '
                'and the segmentor bring fresh ones.'
            )
        check_grn_over(grn_over)
        neck = {'type': 'mmcnx2.FCMAEDecoder', **(neck or {})}
        has_skips = neck.get('skips', False)
        out_indices = range(4) if has_skips else -1
        self.backbone = MODELS.build({**backbone, 'out_norm': False, 'out_indices': out_indices})
        stride = self.backbone.total_stride
        if patch_size < stride or patch_size % stride:
            raise ValueError(
                f'patch_size={patch_size} is not a multiple of the total stride of the backbone, {stride} px.'
            )
        *skip_channels, in_channels = self.backbone.channels
        skips = {'skip_channels': skip_channels} if has_skips else {}
        self.neck = MODELS.build({'kernels': self.backbone.kernels, **neck, 'in_channels': in_channels, **skips})
        self.head = MODELS.build(
            {
                'type': 'mmcnx2.PixelReconstructionHead',
                **(head or {}),
                'stride': stride // self.neck.upsampling,
                'in_channels': self.neck.out_channels,
                'image_channels': self.backbone.in_channels,
            }
        )
        self.mask_ratio, self.patch_size, self.layout, self.grn_over = mask_ratio, patch_size, layout, grn_over

    def init_weights(self) -> None:
        """Load `init_cfg`'s checkpoint into the whole model; without one each part follows its own init_cfg."""
        options = pretrained_options(self.init_cfg, load_pretrained_fcmae)
        if options is None:
            super().init_weights()
        elif not self.is_init:
            of_encoder = pretrained_options(self.backbone.init_cfg, load_pretrained_backbone) or {'path': None}
            if options['path'] is None:
                print_log(
                    'model.init_cfg has checkpoint=None: no weights for the whole of FCMAE. Give a file with '
                    '--cfg-options model.init_cfg.checkpoint=PATH',
                    'current',
                    logging.WARNING,
                )
                for part in (self.backbone, self.neck, self.head):
                    part.init_weights()
            elif of_encoder['path'] is not None:
                raise ValueError(
                    f'model.init_cfg and model.backbone.init_cfg both name a checkpoint ({options["path"]} and '
                    f'{of_encoder["path"]}). Keep the first for encoder and decoder, the second for '
                    'the encoder alone.'
                )
            else:
                load_pretrained_fcmae(self, **options)
            self.is_init = True

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> dict | tuple[Tensor, ...]:
        """mode 'loss': dict(loss=...); mode 'tensor': the backbone's maps of the whole images."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'tensor':
            return self.backbone(inputs)
        raise ValueError(f"mode='{mode}': FCMAE knows 'loss' and 'tensor'.")

    def loss(
        self, images: Tensor, data_samples: list | None = None, visible: Tensor | None = None
    ) -> dict[str, Tensor]:
        """dict(loss=scalar): error on hidden cells.

        Args:
            images: (B, C, H, W), normalised; sides must be multiples of patch_size.
            data_samples: when each carries the metainfo `sample_seed`, its mask depends on that seed alone.
            visible: bool (B, G, G), True = seen; drawn by `draw_visible` when None.

        Raises:
            TypeError, ValueError: `visible` does not fit the images, or hides nothing.
        """
        num_visible = None
        if visible is None:
            visible = self.draw_visible(images, data_samples)
            num_visible = num_visible_cells(visible[0].numel(), self.mask_ratio)
        elif visible.all():
            raise ValueError('visible is True everywhere: no cell is hidden whose pixels could be predicted.')
        predictions_BLP = self.reconstruct(images, visible, num_visible)
        return dict(loss=self.head.loss(predictions_BLP, images, visible))

    def draw_visible(self, images_BCHW: Tensor, data_samples: list | None = None) -> Tensor:
        """visible_BGG at random, the same number in every image."""
        grid_shape = tuple(size // self.patch_size for size in images_BCHW.shape[-2:])
        self._check_sizes(images_BCHW, grid_shape)
        seeds = [sample.get('sample_seed') for sample in data_samples or []]
        seeds = seeds if seeds and None not in seeds else None
        return random_visible(len(images_BCHW), grid_shape, self.mask_ratio, images_BCHW.device, seeds)

    def encode(self, images_BCHW: Tensor, visible_BGG: Tensor) -> Tensor:
        """features_BCGG of visible cells, zeros in hidden ones; patch_size / total stride positions per side of a
        cell. With layout='leaking' hidden cells are not zero."""
        return self._maps(images_BCHW, visible_BGG)[-1]

    def reconstruct(self, images: Tensor, visible: Tensor, num_visible: int | None = None) -> Tensor:
        """predictions_BLP: values of every cell, row by row; normalised per cell when the head's norm_pix is on.

        P = patch_size * patch_size * channels, in (row, column, channel) order. Only hidden cells are trained.
        `num_visible` says, when it is known, how many cells every image sees; then nobody counts them.
        """
        *skips_BCHW, features_BCHW = self._maps(images, visible, num_visible)
        positions_per_side = self.patch_size // self.backbone.total_stride
        visible_BHW = positions_of(visible, positions_per_side)
        return self.head(self.neck(features_BCHW, visible_BHW, *skips_BCHW), self.patch_size)

    def get_layer_depth(self, param_name: str, prefix: str = '', grouping: str = 'single') -> tuple[int, int]:
        """As the backbone's, for parameters of the whole model."""
        return self.backbone.get_layer_depth(param_name, prefix + 'backbone.', grouping)

    def _maps(self, images_BCHW: Tensor, visible_BGG: Tensor, num_visible: int | None = None) -> tuple[Tensor, ...]:
        """The backbone's maps that the decoder takes, the last one last. `num_visible` when it is known to hold."""
        is_grid = visible_BGG.dtype == torch.bool and visible_BGG.ndim == 3
        if not is_grid or len(visible_BGG) != len(images_BCHW):
            raise TypeError(
                f'visible is a {visible_BGG.dtype} tensor of shape {tuple(visible_BGG.shape)} for {len(images_BCHW)} '
                'images; give bool (B, rows, columns), True where the encoder sees the cell (MAE masks are the other '
                'way round: visible = mask == 0).'
            )
        self._check_sizes(images_BCHW, visible_BGG.shape[1:])
        return self.backbone(images_BCHW, self._layout_of(visible_BGG, num_visible))

    def _layout_of(self, visible_BGG: Tensor, num_visible: int | None = None) -> Layout:
        known = {'num_visible': num_visible} if self.layout == 'visible' else {}
        return LAYOUTS[self.layout](visible_BGG, grn_over=self.grn_over, kernels=self.backbone.kernels, **known)

    def _check_sizes(self, images_BCHW: Tensor, grid_shape: tuple[int, int]) -> None:
        sizes = tuple(images_BCHW.shape[-2:])
        if sizes != tuple(cells * self.patch_size for cells in grid_shape) or 0 in grid_shape:
            raise ValueError(
                f'images of {sizes[0]} x {sizes[1]} px do not fit a grid of {grid_shape[0]} x {grid_shape[1]} cells of '
                f'patch_size={self.patch_size} px; make both sides multiples of {self.patch_size} '
                '(the crop size in the pipeline), or choose another patch_size.'
            )
