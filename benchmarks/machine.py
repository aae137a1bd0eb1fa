"""What a benchmark ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import torch

from cahp_opt.torch.latency.model_times import device_name


def device_of(name: str) -> torch.device:
    """The device of that name, with its index, as tensors name it.

    Raises:
        SystemExit: if it is not there.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here; run with `--device cpu`")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def described(device: torch.device) -> str:
    """The device in a few words; a CPU with the number of threads in use."""
    if device.type != "cpu":
        return device_name(device)
    threads = torch.get_num_threads()
    return f"{device_name(device)}, {threads} thread" + "s" * (threads != 1)


def facts(device: torch.device, packages: Sequence[str]) -> dict[str, Any]:
    """The device, its driver, the versions of ``packages`` (None where not installed) and the date."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    on_cuda = device.type == "cuda"
    cudnn: Any = torch.backends.cudnn
    return {
        "device": device_name(device),
        "driver": driver() if on_cuda else None,
        "cuda": torch.version.cuda if on_cuda else None,
        "cudnn": cudnn.version() if on_cuda else None,
        "versions": versions,
        "python": platform.python_version(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def driver() -> str | None:
    """The version of the graphics driver; None where its tool is not installed."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return told[0] if told else None


def load() -> float | None:
    """How many processes wanted a processor over the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def slug(name: str) -> str:
    """The name of a device as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
