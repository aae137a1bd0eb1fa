"""Copies of a model without its weights: they can be cut, and run without memory and arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")


def skeleton(model: nn.Module) -> nn.Module:
    """A copy on the meta device, that keeps what is shared shared. It can be cut, and not run."""

    def empty(tensor: Tensor) -> Tensor:
        return _alike(tensor, torch.empty_like(tensor, device="meta"))

    return copy.deepcopy(model, _memo(model, empty))


def rehearse(
    model: nn.Module,
    sites: Sequence[nn.Module],
    inputs: Mapping[str, Any],
    run: Callable[[nn.Module, list[nn.Module], dict[str, Any]], Result],
) -> Result:
    """Run a model on tensors that have shapes and no values, on a CPU that is made up likewise.

    Args:
        model: on any device, also meta; it is not changed.
        sites: modules of it.
        inputs: for it, by name.
        run: is called with a copy of the model, its modules in place of ``sites``, and the inputs.

    Returns:
        What ``run`` returns.

    Raises:
        ValueError: if the model looks at numbers on its way.
    """
    # Stray tensors, such as indices that hooks hold, are taken as they are.
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        shape, stride = tuple(tensor.shape), tensor.stride()
        return _alike(tensor, torch.empty_strided(shape, stride, dtype=tensor.dtype, device="cpu"))

    unsure: Any = _Unsure
    with mode, unsure(), torch.no_grad():
        memo = _memo(model, fake)
        copied = copy.deepcopy(model, memo)
        given = {k: fake(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        try:
            return run(copied, [memo[id(site)] for site in sites], given)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ValueError(
                f"`model` is a {type(model).__name__} whose forward depends on values ({error}), so it "
                "cannot be run without weights; measure on a device instead."
            ) from None


class _Unsure(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers no to every yes-or-no question about values.

    Releases of transformers before 5 ask whether a mask is true everywhere, to leave it out.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        asks = func.name() in ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero")
        if asks and args[0].dtype is torch.bool:
            return False
        return func(*args, **(kwargs or {}))


def _alike(tensor: Tensor, empty: Tensor) -> Tensor:
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _memo(model: nn.Module, empty: Callable[[Tensor], Tensor]) -> dict[int, Any]:
    """The tensors that ``deepcopy`` takes in place of the model's."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        attributes: list[object] = list(vars(module).values())
        tensors += [value for value in attributes if isinstance(value, Tensor)]
    return {id(tensor): empty(tensor) for tensor in tensors}
