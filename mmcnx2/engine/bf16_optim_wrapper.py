"""Mixed precision for training: forward and loss in bfloat16 autocast, on CUDA and on the CPU.

mmengine's AmpOptimWrapper refuses to run without a GPU and carries a loss scaler, which bfloat16 does not need: it has
the exponent range of float32. Touch it for precision only. Guarded by tests/test_tools.py.
"""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper

from mmcnx2.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """OptimWrapper whose forward pass runs in bfloat16 autocast; parameters, gradients and optimiser state stay
    float32.
    """

    @contextmanager
    def optim_context(self, model: torch.nn.Module):
        with super().optim_context(model), torch.autocast(get_device(), dtype=torch.bfloat16):
            yield
