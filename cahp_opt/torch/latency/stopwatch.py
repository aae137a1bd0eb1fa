"""Timing several pieces of work against each other, fairly, on a machine that does other things too."""

from __future__ import annotations

import gc
import logging
import math
import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from cahp_opt.arrays import Floats
from cahp_opt.progress import Progress, silent
from cahp_opt.torch.latency.timing_log import SampleFile

_log = logging.getLogger(__name__)

LOW = 0.2
"""The quantile that is reported. Other work on the machine only adds time, so a low quantile is
close to the undisturbed time, and steadier than the minimum."""

_ENOUGH = 5
"""The fewest pieces that the pace of a round is computed from."""

_KEPT_BYTES = 2**25 - 2**14
"""Just below the largest block that changes the thresholds of glibc (``DEFAULT_MMAP_THRESHOLD_MAX``)."""
_PLUG_BYTES = 2**28
"""Written to hold back a CUDA device; several times the caches of any device so far."""
_MOST_PLUGS = 200
_WARM_SECONDS = 0.5
"""Of work before the first timed run on CUDA, so that the clock of the device has risen."""


@dataclass(frozen=True)
class Timing:
    """Time of one piece of work.

    Args:
        seconds: the low quantile over the repeats (see :func:`timings`).
        median: their median.
        spread: ``(median - seconds) / seconds``, the noise of the machine.
    """

    seconds: float
    median: float
    spread: float


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Args:
        run: what is timed.
        before: called before every run, and not timed; None for nothing.
        alone: on CUDA, whether to measure device time only, with cold caches; kernels are queued
            while the device is kept busy. That is the time of a part inside a model that keeps the
            device busy. Otherwise the time is from the first launch to the end of the last
            operation.
    """

    run: Callable[[], object]
    before: Callable[[], object] | None = None
    alone: bool = False

    def once(self) -> None:
        """One untimed run."""
        if self.before is not None:
            self.before()
        self.run()


Name = TypeVar("Name")

Meter = Callable[[], float]
"""A counter that only rises: seconds, or joules that were used so far."""


def interleaved(
    work: Mapping[Name, Work],
    *,
    device: torch.device,
    repeats: int,
    progress: Progress = silent,
    stage: str = "time",
    warm_up: int = 2,
    samples: SampleFile | None = None,
    meter: Meter | None = None,
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
        samples: a file with the runs of an interrupted measurement, which are not repeated; new
            runs are added to it.
        meter: what is read before and after every run in place of a clock; None for the time.

    Raises:
        ValueError: if ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
    taken: dict[Name, list[float]] = {name: [] for name in work}
    if samples is not None:
        taken = {name: samples.taken(f"{stage}: {name}")[:repeats] for name in work}
    missing = {name: repeats - len(runs) for name, runs in taken.items() if len(runs) < repeats}
    if meter is not None or device.type != "cuda":
        clock: _Clock | _CudaClock = _Clock(device, meter or time.perf_counter)
    else:
        clock = _CudaClock(device)
    _keep_freed_memory()
    start = time.perf_counter()
    for name in missing:
        for _ in range(warm_up):
            work[name].once()
    if missing and device.type == "cuda":
        torch.cuda.synchronize(device)
        while time.perf_counter() - start < _WARM_SECONDS:
            for name in missing:
                work[name].once()
            torch.cuda.synchronize(device)
    if missing and warm_up:
        each = (time.perf_counter() - start) / (len(missing) * warm_up)
        _log.info("%s: about %.0f s", stage, each * sum(missing.values()))
    order, shuffler = list(work), random.Random(0)
    for done in range(1, repeats + 1):
        shuffler.shuffle(order)
        with _no_garbage_collection():
            for name in order:
                if len(taken[name]) >= done:
                    continue
                seconds = clock(work[name])
                taken[name].append(seconds)
                if samples is not None:
                    samples.add(f"{stage}: {name}", seconds)
        progress(stage, done, repeats)
    return dict(zip(work, timings(np.array(list(taken.values()))), strict=True))


def timings(seconds: Floats) -> list[Timing]:
    """The timing of every piece of interleaved work, corrected for the pace of each round::

        pace[r] = median over p of (seconds[p, r] / median over r of seconds[p, r])
        timing[p] = quantile over r of (seconds[p, r] / pace[r]) * quantile over r of pace[r]

    with the quantile :data:`LOW`, so that a machine whose pace changes every few seconds slows no
    piece more than another. With fewer than five pieces the pace is 1.

    Args:
        seconds: of every piece in every round, ``[pieces, rounds]``.
    """
    pace = np.ones(seconds.shape[1])
    median = np.median(seconds, axis=1)
    some = median > 0  # a coarse counter may not move for a piece that does nearly nothing
    if some.sum() >= _ENOUGH:
        pace = np.median(seconds[some] / median[some, None], axis=0)
    low = np.quantile(seconds / pace, LOW, axis=1) * np.quantile(pace, LOW)
    spread = np.maximum(np.divide(median, low, out=np.ones_like(low), where=low > 0) - 1, 0)
    return [Timing(*map(float, row)) for row in zip(low, median, spread, strict=True)]


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    """Collecting garbage takes time at random moments; it is done between rounds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to twice the size of a block that is freed here.

    Otherwise glibc may return the end of its heap to the system whenever the largest piece of work frees its
    activations, and the next run takes a fault for every page of them: it cost an unpruned model 15 % of its
    time, and smaller ones nothing, or neither, depending on what else lay in memory. glibc raises its
    thresholds (``M_MMAP_THRESHOLD``, ``M_TRIM_THRESHOLD``) by itself when a large block is freed; other C
    libraries are not affected.
    """
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)


def waiting(device: torch.device) -> Callable[[], object]:
    """A function that waits until a device has finished all queued work.

    Raises:
        ValueError: for a device without a way to wait, such as ``meta``.
    """
    if device.type == "cpu":
        return lambda: None
    wait: Callable[[], object] | None = getattr(
        getattr(torch, device.type, None), "synchronize", None
    )
    if wait is None:
        raise ValueError(
            f"`device` is {device}, where nothing can be timed; use cpu, cuda, mps or xpu."
        )
    return wait


class _Clock:
    """Readings of the processor, which waits for any other device."""

    def __init__(self, device: torch.device, meter: Meter) -> None:
        self._wait, self._read = waiting(device), meter

    def __call__(self, piece: Work) -> float:
        if piece.before is not None:
            piece.before()
        self._wait()
        start = self._read()
        piece.run()
        self._wait()
        return self._read() - start


class _CudaClock:
    """Times by events of the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._plug = torch.empty(0)
        self._plug_seconds = 0.0
        self._launching: dict[int, float] = {}

    def __call__(self, piece: Work) -> float:
        if piece.before is not None:
            piece.before()
        torch.cuda.synchronize(self._device)
        if piece.alone:
            self._hold(piece)
        return self._timed(piece.run)

    def _timed(self, run: Callable[[], object]) -> float:
        event: Callable[..., Any] = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def _hold(self, piece: Work) -> None:
        """Keep the device busy for longer than launching the piece takes, and its caches full."""
        if not self._plug_seconds:
            self._plug = torch.empty(_PLUG_BYTES, dtype=torch.uint8, device=self._device)
            self._plug_seconds = min(self._timed(self._plug.zero_) for _ in range(3))
        if id(piece) not in self._launching:
            begun = time.perf_counter()
            piece.run()
            self._launching[id(piece)] = time.perf_counter() - begun
            if piece.before is not None:
                piece.before()
            torch.cuda.synchronize(self._device)
        needed = math.ceil(2 * self._launching[id(piece)] / self._plug_seconds) + 1
        for _ in range(min(needed, _MOST_PLUGS)):
            self._plug.zero_()
