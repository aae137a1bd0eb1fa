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
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())

    close(a.salience.sum, b.salience.sum)
    assert a.gauss_newton.keys() == b.gauss_newton.keys()
    for rho, total in a.gauss_newton.items():
        assert total.count == b.gauss_newton[rho].count
        close(total.sum, b.gauss_newton[rho].sum)
    assert a.fisher.keys() == b.fisher.keys()
    for rho, total in a.fisher.items():
        assert total.count == b.fisher[rho].count
        close(total.sum, b.fisher[rho].sum)
    for x, y in zip(a.moments, b.moments, strict=True):
        assert x.count == y.count
        close(x.sum, y.sum)
        close(x.scatter, y.scatter)
        close(x.readout, y.readout)
    for mine, other in zip(a.sensitivity, b.sensitivity, strict=True):
        assert mine.examples == other.examples
        close(np.array(mine.weight), np.array(other.weight))
        for part in ("sum", "scatter", "metric"):
            close(getattr(mine, part), getattr(other, part))
    assert (a.divergence is None) == (b.divergence is None)
    if a.divergence and b.divergence:
        close(a.divergence.sum, b.divergence.sum)


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
