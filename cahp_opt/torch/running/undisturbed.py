"""Running a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Generator[None, None, None]:
    """Evaluation mode inside; afterwards every module's mode and the random states are as before.

    That holds after an exception or Ctrl-C too. Gradients of parameters are not touched: callers
    differentiate with ``torch.autograd.grad`` with respect to their own tensors.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    devices = {p.device for m in models for p in m.parameters() if p.device.type == "cuda"}
    random = torch.get_rng_state()
    on_devices = [(device, torch.cuda.get_rng_state(device)) for device in devices]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
        torch.set_rng_state(random)
        for device, state in on_devices:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def without_new_hooks(model: nn.Module) -> Generator[None, None, None]:
    """Afterwards removes the hooks and attributes that the model's own code added to its modules inside.

    Transformers installs permanent hooks the first time that attention maps are requested.
    """
    modules = list(model.modules())
    attributes = [set(vars(module)) for module in modules]
    hooks = [{name: set(found) for name, found in _hooks(module)} for module in modules]
    try:
        yield
    finally:
        for module, known, ids in zip(modules, attributes, hooks, strict=True):
            for name, found in _hooks(module):
                for new in set(found) - ids[name]:
                    del found[new]
            for name in set(vars(module)) - known:
                delattr(module, name)


def _hooks(module: nn.Module) -> list[tuple[str, dict[int, Any]]]:
    return [(name, found) for name, found in vars(module).items() if name in _HOOKS]


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
