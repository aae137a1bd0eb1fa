"""Calibration in several processes: every one measures its own data, then they add up."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import distributed

from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling, in_words
from cahp_opt.stats.statistic import Array, InParts, Sums, joined


def gather_stats(stats: HeadStats, group: distributed.ProcessGroup | None = None) -> HeadStats:
    """Add up the statistics of all processes; every process gets the sum.

    Under ``torchrun`` or ``accelerate launch`` each process calibrates the batches of its own share of
    the data, then all of them call this::

        accelerator = Accelerator()
        loader = accelerator.prepare_data_loader(loader)
        stats = gather_stats(calibrate(model.to(accelerator.device), loader))
        if accelerator.is_main_process:
            stats.save("stats.safetensors")

    It is the sum ``a + b + ...`` of :class:`~cahp_opt.stats.head_stats.HeadStats`, so up to
    rounding it equals one process that sees all the data, unless a cap on examples binds. Caps hold
    per process: with ``R`` processes ``gradient_examples=256`` means up to ``256 * R`` in all. Data
    loaders that repeat examples to give every process as many batches (accelerate's
    ``even_batches``) count these examples twice. Every process sends its statistics to all others,
    one after another.

    Give :func:`~cahp_opt.torch.calibrate` the model itself, not a ``DistributedDataParallel``
    around it. If ``torch.distributed`` is not initialised there is one process, and ``stats`` is
    returned as it is.

    Args:
        stats: the statistics of this process.
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

    examples, tokens = _sum([stats.examples, stats.tokens], device, group)
    return replace(
        stats,
        examples=examples,
        tokens=tokens,
        statistics={n: _gathered(s, device, group) for n, s in stats.statistics.items()},
    )


def _gathered(mine: Any, device: torch.device, group: distributed.ProcessGroup | None) -> Any:
    """The sum of a statistic over all processes, in their order, so that all get the same to the bit."""
    if isinstance(mine, InParts):
        return mine.of_parts({n: _gathered(p, device, group) for n, p in mine.parts().items()})
    total = None
    for rank in range(distributed.get_world_size(group)):
        theirs = _sent(mine, rank, device, group)
        total = theirs if total is None else total + theirs
    return total


def _sent(
    mine: Sums, rank: int, device: torch.device, group: distributed.ProcessGroup | None
) -> Sums:
    """A statistic of one process of the group, in every process."""
    own = distributed.get_rank(group) == rank
    source = rank if group is None else distributed.get_global_rank(group, rank)
    untyped: Any = distributed
    received: dict[str, Array] = {}
    for name, array in mine.arrays().items():
        values = np.array(array, order="C")  # others could not know of another order in memory
        if array.ndim:  # not all processes may know of the same classes
            shape = torch.tensor(array.shape, device=device)
            untyped.broadcast(shape, source, group=group)
            values = values if own else np.zeros(shape.cpu().numpy(), array.dtype)
        tensor = torch.tensor(values, device=device)
        untyped.broadcast(tensor, source, group=group)
        received[name] = tensor.cpu().numpy()
    return mine.of_arrays(
        received
    )  # also its own: all add up the same, in the same order in memory


def _check_alike(
    stats: HeadStats, device: torch.device, group: distributed.ProcessGroup | None
) -> None:
    model = repr((stats.model, stats.space))
    arrays = joined({name: s.arrays() for name, s in stats.statistics.items()})
    # The first axis may be that of the classes, which are added up where one process saw more of them.
    options = repr(sorted((name, array.shape[1:]) for name, array in arrays.items()))
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


def _sum(
    counts: list[int], device: torch.device, group: distributed.ProcessGroup | None
) -> list[int]:
    """The sums of counts over all processes."""
    values = torch.tensor(counts, device=device)
    untyped: Any = distributed
    untyped.all_reduce(values, group=group)
    return [int(value) for value in values.cpu().numpy()]


def _device(group: distributed.ProcessGroup | None) -> torch.device:
    """A device that the backend of the group can send from."""
    if "nccl" in str(distributed.get_backend(group)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
