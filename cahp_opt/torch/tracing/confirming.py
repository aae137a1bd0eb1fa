"""Confirming by differentiation what the table of layouts says about a model."""

from __future__ import annotations

import torch
from torch import nn

from cahp_opt.torch.blocks.blocks import Attention
from cahp_opt.torch.slicing.verification import Probe
from cahp_opt.torch.tracing.ownership import contradictions, one_of_each

_COARSE = (torch.float16, torch.bfloat16)


def is_coarse(attention: Attention) -> bool:
    """Whether the weights are so coarse that comparing outputs may miss a wrong head."""
    return any(weight.dtype in _COARSE for block in attention for weight in block.weights)


class Unconfirmed(Exception):
    """The model's code cannot be differentiated, which says nothing either way."""


def contradiction(model: nn.Module, attention: Attention, probe: Probe) -> str | None:
    """The first thing in which differentiation contradicts the table, in a sentence; None if nothing.

    One block of every kind is traced: blocks that are alike are right or wrong together.

    Raises:
        Unconfirmed: if it cannot be told.
    """
    try:
        found = contradictions(probe.part_of(model), one_of_each(attention), probe.batch)
    except RuntimeError as error:
        raise Unconfirmed(str(error).partition("\n")[0]) from error
    return next(iter(found), None)
