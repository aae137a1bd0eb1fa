"""Records made by hand."""

from __future__ import annotations

import numpy as np

from cahp_opt import (
    Block,
    Execution,
    HeadSpace,
    HeadStats,
    LatencyTable,
    Moments,
    Phase,
    Provenance,
    Signatures,
    Total,
    Unit,
)
from cahp_opt.stats.sensitivity import Sensitivity

SPACE = HeadSpace((Block("first", 3), Block("second", 2, Unit.KV_GROUP)))


def make_stats(seed: int = 0, model: str = "model") -> HeadStats:
    rng = np.random.default_rng(seed)
    n = SPACE.n
    matrix = rng.normal(size=(n, n))
    moments, sensitivity = [], []
    for block in SPACE.blocks:
        z = rng.normal(size=(20, 2 * block.units))
        apart = z - z.mean(axis=0)
        moments.append(Moments(z.sum(axis=0), apart.T @ apart, np.eye(2 * block.units), 20))
        sensitivity.append(Sensitivity(z.sum(axis=0), apart.T @ apart, z.T @ z / 2, 30.5, 20))
    return HeadStats(
        SPACE,
        model,
        20,
        200,
        Total(rng.random(n), 8),
        {1.0: Total(matrix @ matrix.T, 8), 0.5: Total(matrix @ matrix.T, 8)},
        tuple(moments),
        Total(rng.random((n, n)), 4),
        Signatures(np.array([3, 0, 5]), rng.random((3, n, 2, 2)), rng.random((3, n, 2, 2))),
        {1.0: Total(2 * matrix @ matrix.T, 8), 0.25: Total(matrix.T @ matrix, 8)},
        tuple(sensitivity),
    )


def make_table() -> LatencyTable:
    return LatencyTable(
        SPACE,
        0.5,
        (np.array([0, 0.1, 0.2, 0.15]), np.array([0.1, 0.2, 0.4])),
        Provenance(
            device="cpu",
            dtype="float32",
            batch=8,
            sequence_length=128,
            phase=Phase.DECODE,
            execution=Execution.CUDA_GRAPH,
            attention="sdpa",
            threads=2,
            repeats=20,
            spread=0.03,
            error=0.01,
            versions={"a": "1"},
        ),
        least=0.55,
    )
