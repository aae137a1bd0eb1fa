"""Measuring the peak rates of a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cahp_opt.costs.hardware import Hardware
from cahp_opt.torch.latency.model_times import device_name, dtype_name
from cahp_opt.torch.latency.operations import Operation, Operations
from cahp_opt.torch.latency.stopwatch import waiting

_SIDE = {"cpu": 1024}
"""Rows of the large square matrices, by kind of device."""

_LARGEST_SIDE = 8192
_COPIED = 2**28  # bytes, far more than any cache holds
_LAYERS = 20
_RUNS = 30
_FEWEST, _ENOUGH = 2, 2.0
"""Slow runs (half precision on many CPUs) stop after _FEWEST runs or _ENOUGH seconds."""


def measure_hardware(device: torch.device | str, *dtypes: torch.dtype) -> Hardware:
    """Measure the peak rates of a device, in a few seconds.

    A large product of matrices in every precision, a large copy, and a chain of tiny layers, whose time is
    that of launching their operations.

    Args:
        device: the device, such as ``cpu`` or ``cuda``.
        dtypes: the precisions that models will run in, such as ``torch.bfloat16``; at least one.

    Raises:
        ValueError: without a precision, or for a device that cannot be used here.
    """
    if not dtypes:
        raise ValueError(
            "`dtypes` is empty; name the precision of the model, such as torch.float32."
        )
    place = torch.device(device)
    waiting(place)
    try:
        torch.empty(1, device=place)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"`device` {place} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    with torch.inference_mode():
        rates = {dtype_name(dtype): _flops_per_second(place, dtype) for dtype in dtypes}
        copied = _bytes_per_second(place)
    return Hardware(
        name=device_name(place),
        flops_per_second=rates,
        bytes_per_second=copied,
        launch_seconds=_launch_seconds(place, dtypes[0]),
        runs_ahead=place.type != "cpu",
    )


def _flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    side = _SIDE.get(device.type, _LARGEST_SIDE)
    one = torch.randn(side, side, device=device).to(dtype)
    other = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / _best(lambda: one @ other, device)


def _bytes_per_second(device: torch.device) -> float:
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * _COPIED / _best(lambda: target.copy_(source), device)


def _launch_seconds(device: torch.device, dtype: torch.dtype) -> float:
    width = 8
    layers = [
        m for _ in range(_LAYERS) for m in (nn.Linear(width, width), nn.LayerNorm(width), nn.GELU())
    ]
    chain = nn.Sequential(*layers).to(device, dtype).eval()
    x = torch.zeros(1, width, device=device, dtype=dtype)
    ran: list[Operation] = []
    with torch.no_grad(), Operations(ran.append):
        chain(x)
    with torch.inference_mode():
        return _best(lambda: chain(x), device) / len(ran)


def _best(run: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest run: other work on the machine only ever adds time."""
    wait = waiting(device)
    taken: list[float] = []
    while len(taken) < _RUNS + 2 and (len(taken) < _FEWEST + 2 or sum(taken) < _ENOUGH):
        wait()
        start = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - start)
    return min(taken[2:])  # the first two warm up
