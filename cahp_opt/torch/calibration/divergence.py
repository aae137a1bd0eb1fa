"""How differently two units attend: Jensen-Shannon divergence of their attention maps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.space import Floats
from cahp_opt.stats.head_stats import Total
from cahp_opt.torch.blocks.finder import Attention
from cahp_opt.torch.calibration.attention_maps import AttentionMaps
from cahp_opt.torch.running.batches import Batch, batch_size


class DivergenceSums:
    """Adds up the Jensen-Shannon divergence (Lin 1991; nats) between every two units' attention maps.

    Per example it is the mean over the real query positions of the divergence between two
    distributions over the real key positions.
    """

    def __init__(self, model: nn.Module, attention: Attention) -> None:
        self._maps = AttentionMaps(model, attention, "divergence_examples")
        n = attention.space.n
        self._sum: Floats = np.zeros((n, n))
        self._count = 0

    def add(self, batch: Batch) -> None:
        """Add one batch.

        Raises:
            ValueError: if the model does not hand out its attention maps.
        """
        for maps in self._maps.each(batch):
            self._sum += jensen_shannon(maps)
        self._count += batch_size(batch)

    def result(self) -> Total:
        """Sum over examples of the divergences, ``[n, n]``."""
        return Total(self._sum, self._count)


def jensen_shannon(maps: Tensor) -> Floats:
    """Mean over queries of the pairwise divergence of ``maps [n, queries, keys]``, shape ``[n, n]``.

    Rows are normalised over the keys; a row that attends to none of them counts as uniform.
    """
    keys = maps.shape[2]
    total = maps.sum(dim=2, keepdim=True)
    p = torch.where(total > 0, maps / total, 1 / keys).flatten(1)  # [n, queries * keys]
    queries = maps.shape[1]
    entropy = -torch.xlogy(p, p).sum(dim=1)
    n = len(p)
    result = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n - 1):
        middle = (p[i] + p[i + 1 :]) / 2
        mixed = -torch.xlogy(middle, middle).sum(dim=1)
        row = (mixed - (entropy[i] + entropy[i + 1 :]) / 2) / queries
        result[i, i + 1 :] = row.clamp(min=0).cpu().double()  # rounding alone can go below 0
    return (result + result.T).numpy()
