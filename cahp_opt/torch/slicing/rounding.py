"""The difference that rounding may cause in a model's outputs, found by perturbing its blocks.

A difference must be judged relative to the terms of a result, not to a result in which they cancel:
a logit near zero, heads with opposite outputs, a small output on a large residual stream. So the
output of every block is moved at random by a fraction of the size of its terms; rounding
may move the results as far as that does.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch.blocks.blocks import Prunable, PrunableBlock, out_bias, out_weight


@contextmanager
def shaken(prunable: Prunable, fraction: float, seed: int) -> Generator[None]:
    """Perturb the output of every block at random while the context lasts.

    Args:
        prunable: the blocks.
        fraction: standard deviation of the numbers, relative to the root of the sum of the squares of the
            products that an output is added up from.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        for block in prunable:
            hook = _shaking(block, fraction, generator)
            stack.callback(block.out.register_forward_hook(hook).remove)
        yield


def _shaking(
    block: PrunableBlock, fraction: float, generator: torch.Generator
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def shake(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        wide = torch.promote_types(output.dtype, torch.float32)
        heads: Tensor = args[0]
        squares = heads.to(wide).square() @ out_weight(block).detach().to(wide).square().T
        bias = out_bias(block)
        if bias is not None:
            squares = squares + bias.detach().to(wide).square()
        # Drawn on the CPU, where the same seed gives the same numbers whatever the device.
        random = torch.randn(output.shape, generator=generator).to(output.device, wide)
        return (output.to(wide) + fraction * squares.sqrt() * random).to(output.dtype)

    return shake
