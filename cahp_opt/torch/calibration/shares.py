"""Several processes that measure together: which texts each of them takes, and how they are connected."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from cahp_opt.torch.calibration.collector import Collector
from cahp_opt.torch.running.batches import Batch, batch_size

Told = TypeVar("Told")

_PATIENCE = timedelta(days=7)  # the others wait while the first one times the model


@dataclass(frozen=True)
class Share:
    """The part of the work that one of several processes does: every batch in its turn.

    Args:
        rank: the number of the process, from 0.
        processes: how many there are.
    """

    rank: int = 0
    processes: int = 1

    @staticmethod
    def here() -> Share:
        """The share of this process: all, unless ``torch.distributed`` is initialised."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return Share()
        return Share(distributed.get_rank(), distributed.get_world_size())

    def of(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches of this process.

        Raises:
            ValueError: if there are fewer batches than processes.
        """
        if len(batches) < self.processes:
            raise ValueError(
                f"`batches` are {len(batches)}, fewer than the {self.processes} processes that a launcher started; "
                "start fewer processes, or give more texts or smaller batches."
            )
        return list(batches[self.rank :: self.processes])

    def number(self, own: int) -> int:
        """The position in all batches of the batch at a position in those of this process."""
        return self.rank + own * self.processes

    def asking(self, collector: Collector, batches: Sequence[Batch]) -> Collector:
        """A collector for this process: of its examples it takes those that are among the first of all batches."""
        most: int | None = collector.examples
        if most is None or self.processes == 1:
            return collector
        seen, own = 0, 0
        for number, batch in enumerate(batches):
            size = min(batch_size(batch), max(most - seen, 0))
            own += size if number % self.processes == self.rank else 0
            seen += size
        found: Collector = replace(
            cast("Any", collector), examples=own
        )  # all of ours are dataclasses
        return found


@contextmanager
def connected() -> Generator[Share]:
    """Connect the processes that a launcher such as ``torchrun`` started, each with a GPU of its own where there are
    some; without a launcher this one is alone.

    Yields:
        The share of this process.
    """
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        yield Share()
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield Share.here()
    finally:
        distributed.destroy_process_group()


def told_by_first(value: Told | None) -> Told:
    """What the first process knows, in every process; alone, the value itself."""
    untyped: Any = distributed
    told: list[Any] = [value]
    if Share.here().processes > 1:
        untyped.broadcast_object_list(told, src=0)
    found: Told = told[0]
    return found
