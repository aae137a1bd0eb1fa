"""Sliced copies that take as long as the saved model will, once it is loaded."""

from __future__ import annotations

import numpy.typing as npt
from torch import nn

from cahp_opt.torch.blocks.finder import Prunable, reread
from cahp_opt.torch.slicing.bypass import bypass_where_possible
from cahp_opt.torch.slicing.slicing import thin_copy


def timing_copy(prunable: Prunable, kept: npt.ArrayLike) -> nn.Module:
    """A :func:`~cahp_opt.torch.slicing.slicing.thin_copy` that skips its blocks without kept units, as a model that
    is loaded does.

    Args:
        prunable: the blocks of the model; it is not changed.
        kept: the keep-set, bool ``[n]``; the model itself is returned if that is everything.

    Raises:
        ValueError: if ``kept`` is not a keep-set of the model.
    """
    small = thin_copy(prunable, kept)
    if not prunable.space.counts(kept).all():
        bypass_where_possible(reread(prunable.at(small)))
    return small
