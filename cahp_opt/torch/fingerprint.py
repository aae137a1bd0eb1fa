"""A short name for a model's weights, so that statistics of two models never mix."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from cahp_opt.torch.attention import find_attention
from cahp_opt.torch.linears import is_conv1d
from cahp_opt.torch.readout import plain_weight, readout_weight


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over the block names and output-projection weights.

    Weights of another precision are other weights: calibrate a model in the precision it is used in.
    """
    digest = hashlib.sha256()
    for block in find_attention(model):
        weight = plain_weight(block.out)
        if weight is None:
            weight = readout_weight(block.out, block.width)
            weight = weight.T if is_conv1d(block.out) else weight  # as it is stored
        digest.update(f"{block.name}/{block.units}/{weight.dtype}/{list(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
