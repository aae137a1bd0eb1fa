"""Timing several pieces of work against each other, fairly, on a machine that does other things too."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from cahp_opt.progress import Progress, silent

LOW = 0.2
"""The quantile that is reported: other work on the machine only ever adds time, so a low quantile is
close to the undisturbed time, and steadier than the minimum."""


@dataclass(frozen=True)
class Timing:
    """Time of one piece of work.

    Args:
        seconds: the low quantile over the repeats.
        median: their median.
        spread: ``(median - seconds) / seconds``, the noise of the machine.
    """

    seconds: float
    median: float
    spread: float


Name = TypeVar("Name")


def interleaved(
    work: Mapping[Name, Callable[[], object]],
    *,
    device: torch.device,
    repeats: int,
    progress: Progress = silent,
    stage: str = "time",
    warm_up: int = 2,
) -> dict[Name, Timing]:
    """Time every piece of work ``repeats`` times, in rounds of one run each in a shuffled order.

    Rounds spread slow drifts of the machine (heat, other programs) over all pieces alike, and shuffling
    keeps a piece from always following the same other one; the order is the same on every call.

    Args:
        work: the pieces by name.
        device: where they run; on CUDA its events keep the time.
        repeats: rounds.
        progress: called once per round.
        stage: name of the work for ``progress``.
        warm_up: untimed runs of each piece before.

    Raises:
        ValueError: if ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
    clock = _cuda_seconds if device.type == "cuda" else _seconds
    for run in work.values():
        for _ in range(warm_up):
            run()
    taken: dict[Name, list[float]] = {name: [] for name in work}
    order, shuffler = list(work), random.Random(0)
    for done in range(1, repeats + 1):
        shuffler.shuffle(order)
        for name in order:
            taken[name].append(clock(work[name]))
        progress(stage, done, repeats)
    return {name: _timing(seconds) for name, seconds in taken.items()}


def _timing(seconds: list[float]) -> Timing:
    low, median = (float(q) for q in np.quantile(seconds, [LOW, 0.5]))
    return Timing(low, median, (median - low) / low)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run: Callable[[], object]) -> float:
    new: Callable[..., Any] = torch.cuda.Event
    start, end = new(enable_timing=True), new(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
