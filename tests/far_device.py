"""A device that is not there and knows no double precision, as Apple's GPUs; it computes on the CPU.

Tensors on it say that they are on :data:`FAR`. Making one in float64 ends in a ``TypeError``, as there.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cahp_opt.torch.blocks import linear_layers as linears

FAR = torch.device("lazy", 0)
"""A type of device that PyTorch lets one name without a build for it."""


class FarTensor(Tensor):
    """Looks like a tensor on :data:`FAR`; ``near`` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        if near.dtype == torch.float64:
            raise TypeError("Cannot convert a far tensor to float64; the device does not know it.")
        make: Any = torch.Tensor._make_wrapper_subclass
        made = make(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
        )
        made.near = near
        return cast("FarTensor", made)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FarTensor({self.near!r})"


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, far if an input is, unless it names a device."""
    far = False

    def brought(value: object) -> object:
        nonlocal far
        if isinstance(value, FarTensor):
            far = True
            return value.near
        return value

    inputs, options = tree_map(brought, args), tree_map(brought, kwargs)
    device = options.get("device")
    if device is not None:
        far = torch.device(device).type == FAR.type
        options["device"] = torch.device("cpu") if far else device
    output = func(*inputs, **options)
    if not far:
        return output
    # What an operation changes in place is handed back as the tensor that came.
    came = {id(v.near): v for v in tree_leaves((args, kwargs)) if isinstance(v, FarTensor)}

    def sent_back(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return came[id(value)] if id(value) in came else FarTensor(value)

    return tree_map(sent_back, output)


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """``torch.tensor`` and lists as indices go past the dispatcher; here they are made and sent."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        device = options.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            del options["device"]
            wanted = options.pop("requires_grad", False)
            made = func(*args, **options).to(device)
            return made.requires_grad_() if wanted else made
        if func is torch.Tensor.__getitem__ and isinstance(args[0], FarTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            known = (torch.tensor(part) if isinstance(part, list) else part for part in index)
            return func(args[0], tuple(known))
        return func(*args, **options)


class _FarNN:
    """``torch.nn`` for code that asks whether a weight is a plain parameter."""

    Parameter = FarTensor

    def __getattr__(self, name: str) -> Any:
        return getattr(nn, name)


@contextmanager
def far_device() -> Generator[None, None, None]:
    """Inside, tensors can be made on and moved to :data:`FAR`."""
    with mock.patch.object(linears, "nn", _FarNN()), _Made(), _Dispatch():  # type: ignore[no-untyped-call]
        yield


def sent(model: nn.Module) -> nn.Module:
    """The model, in place, with its weights and buffers on :data:`FAR`."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = known.setdefault(
                    id(parameter),
                    nn.Parameter(FarTensor(parameter.detach()), parameter.requires_grad),
                )
                module._parameters[name] = moved
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FarTensor(buffer)
    return model
