"""The weight of an output projection, wherever it is stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cahp_opt.torch.blocks.linear_layers import is_conv1d


def plain_weight(out: nn.Module) -> Tensor | None:
    """The weight as stored, ``[hidden, width]`` or transposed (Conv1D), if it is an ordinary one in
    memory; None otherwise."""
    weight: object = getattr(out, "weight", None)
    ordinary = type(out) is nn.Linear or is_conv1d(out)
    if ordinary and isinstance(weight, Tensor) and not weight.is_meta:
        return weight.detach()
    return None


def readout_weight(out: nn.Module, width: int) -> Tensor:
    """The matrix ``[hidden, width]`` that a linear module multiplies its inputs by.

    An ordinary weight is read. If it is offloaded, wrapped by an adapter or quantised, it is
    computed as the derivative of the output by the input.

    Args:
        out: the module.
        width: its input columns.

    Raises:
        ValueError: if the module cannot be differentiated.
    """
    weight = plain_weight(out)
    if weight is not None:
        return weight.T if is_conv1d(out) else weight
    known = next((p for p in out.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if known is None else known.dtype
    device = getattr(getattr(out, "_hf_hook", None), "execution_device", None)
    if device is None:
        device = next((p.device for p in out.parameters() if not p.is_meta), None)
    with torch.enable_grad():
        hidden = int(out(torch.zeros(1, width, dtype=dtype, device=device)).shape[-1])
        x = torch.zeros(hidden, width, dtype=dtype, device=device, requires_grad=True)
        y: Tensor = out(x)
        if not y.requires_grad:
            raise ValueError(
                f"the weight of an output projection of type {type(out).__name__} cannot be read; "
                "load the model whole, in a floating-point precision."
            )
        one = torch.eye(hidden, dtype=y.dtype, device=y.device)
        return torch.autograd.grad(y, x, one)[0]
