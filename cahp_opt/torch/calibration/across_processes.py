"""Calibration in several processes: every one measures its own data, then they add up."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import torch
from torch import distributed

from cahp_opt.arrays import Floats
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.moments import Moments, Total
from cahp_opt.stats.pooling import Pooling, in_words
from cahp_opt.stats.sensitivity import Sensitivity
from cahp_opt.stats.signatures import Signatures


def gather_stats(stats: HeadStats, group: distributed.ProcessGroup | None = None) -> HeadStats:
    """Add up the statistics of all processes; every process gets the sum.

    Under ``torchrun`` or ``accelerate launch`` each process calibrates the batches of its own share of
    the data, then all of them call this::

        accelerator = Accelerator()
        loader = accelerator.prepare_data_loader(loader)
        stats = gather_stats(calibrate(model.to(accelerator.device), loader))
        if accelerator.is_main_process:
            stats.save("stats.safetensors")

    It is the sum ``a + b + ...`` of :class:`~cahp_opt.stats.head_stats.HeadStats`, so it equals one process that sees all the
    data, up to rounding, where no cap on examples binds. Caps hold per process: with ``R`` processes
    ``gradient_examples=256`` means up to ``256 * R`` in all. Data loaders that repeat examples to
    give every process as many batches (accelerate's ``even_batches``) count these examples twice.

    Give :func:`~cahp_opt.torch.calibrate` the model itself, not a ``DistributedDataParallel`` around it. Where
    ``torch.distributed`` is not initialised there is one process, and ``stats`` comes back as it is.

    Args:
        stats: what this process measured.
        group: the processes that take part, all of which must call this; None for all there are.

    Raises:
        ValueError: in every process, if the statistics are of different models, of embeddings pooled in
            different ways, or measured different things, or if a launcher started several processes that are not connected.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        started = os.environ.get("WORLD_SIZE", "1")
        if started not in ("", "1"):
            raise ValueError(
                f"a launcher started {started} processes, and `torch.distributed` is not initialised, so "
                "their statistics cannot be added; make an `Accelerator()` or call "
                "`torch.distributed.init_process_group()` first."
            )
        return stats
    device = _device(group)
    _check_alike(stats, device, group)

    def summed(total: Total) -> Total:
        return Total(_sum(total.sum, device, group), count(total.count))

    def count(value: int) -> int:
        return int(_sum(np.array(value, dtype=np.float64), device, group))

    def moments(mine: Moments) -> Moments:
        first, scatter, tokens = _scatter(mine.sum, mine.scatter, mine.count, device, group)
        return Moments(first, scatter, mine.readout, int(tokens))

    def sensitivity(mine: Sensitivity) -> Sensitivity:
        first, scatter, weight = _scatter(mine.sum, mine.scatter, mine.weight, device, group)
        metric = _sum(mine.metric, device, group)
        return Sensitivity(first, scatter, metric, weight, count(mine.examples))

    return HeadStats(
        stats.space,
        stats.model,
        count(stats.examples),
        count(stats.tokens),
        summed(stats.salience),
        {rho: summed(total) for rho, total in stats.gauss_newton.items()},
        tuple(moments(m) for m in stats.moments),
        None if stats.divergence is None else summed(stats.divergence),
        None if stats.signatures is None else _pooled(stats.signatures, device, group),
        {rho: summed(total) for rho, total in stats.fisher.items()},
        tuple(sensitivity(s) for s in stats.sensitivity),
        stats.pooling,
    )


def _scatter(
    mine: Floats,
    scatter: Floats,
    weight: float,
    device: torch.device,
    group: distributed.ProcessGroup | None,
) -> tuple[Floats, Floats, float]:
    """The sum of weighted rows of all processes, their second moment about the common mean, and the weight.

    Args:
        mine: the sum of this process.
        scatter: about this process's mean.
        weight: of this process's rows.
        device: what the backend sends from.
        group: the processes.
    """
    total = _sum(mine, device, group)
    everything = float(_sum(np.array(weight, dtype=np.float64), device, group))
    apart = mine / weight - total / everything if weight else np.zeros_like(mine)
    step = apart * np.sqrt(weight)
    return total, _sum(scatter + np.outer(step, step), device, group), everything


def _pooled(
    mine: Signatures, device: torch.device, group: distributed.ProcessGroup | None
) -> Signatures:
    """The signatures of all processes together; some may not have met the classes of others."""
    classes = torch.tensor(len(mine.counts), device=device)
    untyped: Any = distributed
    untyped.all_reduce(classes, op=untyped.ReduceOp.MAX, group=group)
    mine = mine.padded(int(classes))
    own = mine.counts.astype(np.float64)
    total = _sum(own, device, group)
    own, all_ = own[:, None, None, None], np.maximum(total, 1)[:, None, None, None]
    mean = _sum(own * mine.mean, device, group) / all_
    squares = _sum(mine.squares + own * (mine.mean - mean) ** 2, device, group)
    return Signatures(total.astype(np.int64), mean, squares)


def _check_alike(
    stats: HeadStats, device: torch.device, group: distributed.ProcessGroup | None
) -> None:
    model = repr((stats.model, stats.space))
    measured = (len(stats.moments), len(stats.sensitivity), stats.divergence is not None)
    size = None if stats.signatures is None else stats.signatures.size
    options = repr((list(stats.gauss_newton), list(stats.fisher), *measured, size))
    poolings = [None, *Pooling]
    digests = [_digest(model), _digest(options), 32 * [poolings.index(stats.pooling)]]
    mine = torch.tensor(digests, dtype=torch.uint8, device=device)
    everyone = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    untyped: Any = distributed
    untyped.all_gather(everyone, mine, group=group)
    for rank, theirs in enumerate(everyone):
        if not torch.equal(theirs[0], everyone[0][0]):
            raise ValueError(
                f"process {rank} calibrated another model than process 0; load the same weights, in the "
                "same precision, in every process."
            )
        if not torch.equal(theirs[2], everyone[0][2]):
            first, other = (in_words(poolings[int(x[2][0])]) for x in (everyone[0], theirs))
            raise ValueError(
                f"process {rank} calibrated with {other}, and process 0 with {first}; use the same `fidelity`, "
                "such as `fidelity_of(model, Pooling.MEAN)`, in every process."
            )
        if not torch.equal(theirs[1], everyone[0][1]):
            raise ValueError(
                f"process {rank} calibrated with other options than process 0; use the same densities and "
                "kinds of statistics in every process."
            )


def _digest(text: str) -> list[int]:
    return list(hashlib.sha256(text.encode()).digest())


def _sum(array: Floats, device: torch.device, group: distributed.ProcessGroup | None) -> Floats:
    """The sum over all processes, in double precision (exact for counts below 2**53)."""
    values = torch.tensor(array, dtype=torch.float64, device=device)
    untyped: Any = distributed
    untyped.all_reduce(values, group=group)
    result: Floats = values.cpu().numpy()
    return result


def _device(group: distributed.ProcessGroup | None) -> torch.device:
    """A device that the backend of the group can send from."""
    if "nccl" in str(distributed.get_backend(group)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
