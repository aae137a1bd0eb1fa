"""Batches made by hand, and what two calibrations of them are compared by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.stats.head_stats import HeadStats

Batch = dict[str, Tensor]


def texts(n: int = 7, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 40, size=rng.integers(3, 9)).tolist() for _ in range(n)]


def collate(rows: Iterable[list[int]], *, extra: int = 0, left: bool = False) -> Batch:
    rows = list(rows)
    length = max(map(len, rows)) + extra
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(a: HeadStats, b: HeadStats, rtol: float = 1e-3) -> None:
    assert (a.model, a.examples, a.tokens) == (b.model, b.examples, b.tokens)

    def close(x: np.ndarray, y: np.ndarray) -> None:
        if np.issubdtype(x.dtype, np.integer):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())

    assert a.statistics.keys() == b.statistics.keys()
    for name, statistic in a.statistics.items():
        mine, theirs = statistic.arrays(), b.statistics[name].arrays()
        assert mine.keys() == theirs.keys()
        for part, array in mine.items():
            close(array, theirs[part])


def trace(model: nn.Module) -> list[object]:
    """Everything that must be as before."""
    return [
        [
            (n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
            for n, m in model.named_modules()
        ],
        [
            (
                n,
                p.requires_grad,
                p.dtype,
                p.device,
                p._version,
                id(p.grad),
                None if p.grad is None else p.grad.sum().item(),
            )
            for n, p in model.named_parameters()
        ],
        model.config._attn_implementation,  # type: ignore[union-attr]
        torch.random.get_rng_state().tolist(),
    ]
