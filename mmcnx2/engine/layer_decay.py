"""Parameter groups: which learning rate and which weight decay each parameter gets. One constructor for every task.

The depth of a layer is the backbone's own knowledge (`get_layer_depth`); what is exempt from weight decay is decided
here. Touch this file for the rules of weight decay and for how groups are merged; not to add a backbone (give it a
`get_layer_depth(param_name, prefix='')` and it works). Guarded by tests/engine/test_layer_decay.py.
"""

import inspect
from numbers import Real

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from mmcnx2.engine.sharding import original_dimensions
from mmcnx2.registry import OPTIM_WRAPPER_CONSTRUCTORS

# Endings of parameter names without weight decay, whatever their shape. Everything with one dimension is exempt as
# well; GRN and layer scale are here because some codes store them with more.
NO_DECAY_ENDINGS = ('bias', 'gamma', 'beta', 'mask_token', 'cls_token', 'pos_embed', 'relative_position_bias_table')

# Wrappers that put themselves into the names of parameters: FSDP, activation checkpointing, torch.compile.
WRAPPER_NAMES = ('_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_orig_mod')

ALLOWED_KEYS = ('layer_decay_rate', 'grouping', 'no_decay', 'decay_also')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """An optimizer wrapper whose groups carry the lr of their depth, and weight decay only where it belongs.

    The learning rate of a backbone parameter is `lr * layer_decay_rate ** (num_layers - 1 - layer_id)`, both numbers
    from the backbone's `get_layer_depth`. Everything outside the backbone keeps `lr`. The backbone is found by having
    that method, so it may sit anywhere: in a classifier, detector, segmentor, under DDP, or be the model itself.

    `paramwise_cfg` takes

    * `layer_decay_rate` (0 < rate <= 1, default 1): 1 leaves all learning rates equal; weight decay follows the same
      rules;
    * `grouping`: which layers count as one, as the backbone names it (ConvNeXt V2: 'single', 'group', 'stage_wise').
      None takes the backbone's default;
    * `no_decay`: name endings without weight decay, besides what has one dimension, biases, norms, GRN, tokens and
      position embeddings;
    * `decay_also`: name endings with weight decay in spite of that. `['grn.gamma', 'grn.beta', 'mask_token']` repeats
      what the official FCMAE script does, and its authors later advised against.

    Endings are compared at the dots of a name: 'gamma' matches 'grn.gamma' and not 'mygamma'. Frozen parameters are
    left out; shared ones occur once, at the depth that they have in the backbone. Each group also carries `lr_scale`
    and `name`, and one without weight decay `lars_exclude=True`: mmpretrain's LARS then leaves the rate of its
    parameters alone, as usual for biases and norms; other optimizers do not look at it.

    Raises:
        ValueError, TypeError: unknown key or impossible value in `paramwise_cfg`; an ending that matches no parameter;
            no backbone with `get_layer_depth` although the rate is below 1; nothing to train.

    Source: optim_factory.py of facebookresearch/ConvNeXt-V2 ('single', 'group'), the constructors of mmdetection and
    mmsegmentation ('stage_wise'). Different from the former: GRN and the mask token are exempt in pretraining too.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        options = self.paramwise_cfg
        unknown = sorted(set(options) - set(ALLOWED_KEYS))
        if unknown:
            raise ValueError(
                f'paramwise_cfg has unknown keys {unknown}. Allowed are {list(ALLOWED_KEYS)}; the number '
                'of layers comes from the backbone.'
            )
        self.rate = options.get('layer_decay_rate', 1.0)
        if not isinstance(self.rate, Real) or isinstance(self.rate, bool) or not 0 < self.rate <= 1:
            raise ValueError(
                f'layer_decay_rate={self.rate!r} is not a number above 0 and up to 1. Use 1 for equal learning rates.'
            )
        self.grouping = options.get('grouping')
        self.no_decay = _endings(options, 'no_decay')
        self.decay_also = _endings(options, 'decay_also')
        if not isinstance(self.base_lr, Real):
            raise ValueError(
                f'optimizer has lr={self.base_lr!r}. Set optim_wrapper.optimizer.lr to a number: the '
                'learning rate of each layer is a multiple of it.'
            )
        # The parent hands over all parameters in one piece, with decay for all, when this is empty.
        self.paramwise_cfg = {**options, 'layer_decay_rate': self.rate}

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The wrapper with its optimiser, for a model that may be wrapped for several processes."""
        self.dimensions = original_dimensions(model)  # the parent takes the wrapper off, and the shapes with it
        return super().__call__(model)

    def add_params(self, params: list, module: nn.Module, **kwargs) -> None:
        """Append one group per (learning-rate scale, weight decay or not) to `params`, the largest scale first."""
        scales = self._scales_by_parameter(module)
        self._check_endings([name for name, _ in module.named_parameters()])
        groups = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                key = scales.get(id(parameter), 1.0), self._takes_weight_decay(name, self.dimensions[id(parameter)])
                groups.setdefault(key, []).append(parameter)
        if not groups:
            raise ValueError(
                f'{type(module).__name__} has no trainable parameter. Lower frozen_stages or remove '
                'requires_grad=False.'
            )
        for (scale, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True):
            group = dict(
                params=parameters,
                lr=self.base_lr * scale,
                lr_scale=scale,
                name=f'lr x {scale:.4g}, {"with" if decays else "no"} weight decay',
            )
            if not decays:
                group.update(weight_decay=0.0, lars_exclude=True)
            elif self.base_wd is not None:
                group['weight_decay'] = self.base_wd
            params.append(group)
        lines = [
            f'  {group["name"]}: {sum(p.numel() for p in group["params"]):,} in {len(group["params"])} tensors'
            for group in params
        ]
        print_log('\n'.join(['Parameter groups:', *lines]), logger='current')

    def _scales_by_parameter(self, model: nn.Module) -> dict[int, float]:
        """id(parameter) -> scale, for every parameter of every module that knows its depths."""
        if self.rate == 1 and self.grouping is None:
            return {}
        scales = {}
        found = False
        for module in model.modules():
            # mmpretrain's algorithms have a method of this name too; it takes no prefix and asks their backbone.
            depth_of = getattr(module, 'get_layer_depth', None)
            if depth_of is None or 'prefix' not in inspect.signature(depth_of).parameters:
                continue
            found = True
            options = self._grouping_option(type(module).__name__, depth_of)
            for name, parameter in module.named_parameters():
                layer_id, num_layers = depth_of(_plain_name(name), prefix='', **options)
                scales.setdefault(id(parameter), float(self.rate ** (num_layers - 1 - layer_id)))
        if not found:
            backbone = type(getattr(model, 'backbone', model)).__name__
            raise ValueError(
                f"Layer decay needs a backbone with get_layer_depth(param_name, prefix='') -> (layer_id, "
                f'num_layers); {backbone} has none. Add the method, or leave out layer_decay_rate='
                f'{self.rate} and grouping={self.grouping!r}.'
            )
        return scales

    def _grouping_option(self, backbone: str, depth_of) -> dict:
        if self.grouping is None:
            return {}
        if 'grouping' not in inspect.signature(depth_of).parameters:
            raise ValueError(
                f'grouping={self.grouping!r}: {backbone} knows one way to count its layers. Leave grouping out.'
            )
        return dict(grouping=self.grouping)

    def _takes_weight_decay(self, name: str, num_dimensions: int) -> bool:
        if any(_ends_with(name, ending) for ending in self.decay_also):
            return True
        exempt = NO_DECAY_ENDINGS + self.no_decay
        return num_dimensions > 1 and not any(_ends_with(name, ending) for ending in exempt)

    def _check_endings(self, names: list[str]) -> None:
        for option, endings in (('no_decay', self.no_decay), ('decay_also', self.decay_also)):
            for ending in endings:
                if not any(_ends_with(name, ending) for name in names):
                    raise ValueError(
                        f'{option} has the ending {ending!r}, which no parameter has. Names look like {names[-1]!r}.'
                    )


def _endings(options: dict, key: str) -> tuple[str, ...]:
    endings = options.get(key, ())
    if isinstance(endings, str) or not all(isinstance(ending, str) for ending in endings):
        raise TypeError(f"{key}={endings!r} is not a list of name endings such as ['mask_token'].")
    return tuple(endings)


def _ends_with(name: str, ending: str) -> bool:
    return f'.{name}'.endswith(f'.{ending}')


def _plain_name(name: str) -> str:
    return '.'.join(part for part in name.split('.') if part not in WRAPPER_NAMES)
