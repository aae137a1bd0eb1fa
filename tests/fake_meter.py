"""A meter of joules that are made up: what the linear layers of a model would use."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_used = [0.0]


@contextmanager
def plugged_in() -> Generator[None, None, None]:
    """Count while the body runs; a hook that stayed would disturb whatever runs afterwards."""
    handle = nn.modules.module.register_module_forward_hook(_count)
    try:
        yield
    finally:
        handle.remove()


def joules(device: torch.device) -> Callable[[], float]:
    """A counter that rises by a nanojoule for every weight that every token meets."""
    return lambda: _used[0]


def _count(module: nn.Module, given: Any, output: Any) -> None:
    if isinstance(module, nn.Linear):
        _used[0] += 1e-9 * module.weight.numel() * given[0].numel() / given[0].shape[-1]
