"""Which parameters belong to which unit of attention, found by differentiation.

The input of a block's output projection holds the units' outputs side by side. An entry of a parameter
belongs to a unit if that unit's columns alone depend on it, which autograd decides exactly: the
gradient with respect to entries of other units is zero, not small. So a table of layouts can be
confirmed without slicing anything, and attention that no table describes can still be read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Bools, Ints
from cahp_opt.torch.blocks.blocks import Prunable, submodules
from cahp_opt.torch.running.undisturbed import evaluating


@dataclass(frozen=True, eq=False)
class TracedSite:
    """A site to trace.

    Args:
        name: of the block, for messages.
        site: the module whose parameters are looked at.
        out: path of the output projection inside the site.
        columns: the unit of every input column of the output projection, int ``[width]``.
    """

    name: str
    site: nn.Module
    out: str
    columns: Ints

    @property
    def units(self) -> int:
        """The number of units."""
        return int(self.columns.max()) + 1


@dataclass(frozen=True, eq=False)
class UnitTrace:
    """The result of differentiation for one block.

    Args:
        name: of the block.
        units: its units.
        reached: whether the batch ran the output projection at all.
        touched: for every parameter of the site, by path, one bool array ``[units, size]`` per axis:
            which unit's output depends on which entry.
        arguments: the same for the float arguments of the site's forward.
        norms: for every module whose parameters are vectors, by path: which unit's output depends on
            which entry of the last axis of its *input*, bool ``[units, width]``.
    """

    name: str
    units: int
    reached: bool
    touched: Mapping[str, tuple[Bools, ...]]
    arguments: Mapping[str, tuple[Bools, ...]]
    norms: Mapping[str, Bools]


def trace_units(
    model: nn.Module, prunable: Prunable, batch: Mapping[str, Any]
) -> tuple[UnitTrace, ...]:
    """Trace every block of a model in one forward pass.

    Args:
        model: the model, or a part of it that holds the blocks.
        prunable: the blocks.
        batch: keyword arguments for the model; a few examples of at least two tokens, since a query
            with a single key does not depend on either.
    """
    targets = [TracedSite(b.name, b.site, _path(b.site, b.out), b.columns) for b in prunable]
    return trace_targets(model, targets, batch)


def trace_targets(
    model: nn.Module, targets: Sequence[TracedSite], batch: Mapping[str, Any]
) -> tuple[UnitTrace, ...]:
    """Trace sites in one forward pass; as :func:`trace_units`, for sites that no table describes.

    A module that runs several times is traced at its first run: later runs depend on earlier ones
    through the same parameters. Every site is differentiated as soon as its output projection is
    called, and nothing is kept for a later backward pass, so memory is that of one site.
    """
    recorders = [_Recorder(target) for target in targets]
    with evaluating(model), torch.enable_grad(), ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder.listening())
        model(**batch)
    return tuple(recorder.trace() for recorder in recorders)


class _Recorder:
    """Traces one site while the model runs."""

    def __init__(self, target: TracedSite) -> None:
        self._target = target
        self._out = target.site.get_submodule(target.out)
        named: dict[str, Tensor] = _named(target.site.named_parameters())
        named |= _named(target.site.named_buffers())  # tables of slopes or masks may have heads too
        self._tensors = {path: t for path, t in named.items() if t.is_floating_point()}
        self._arguments: dict[str, Tensor] = {}
        self._norm_inputs: dict[str, Tensor] = {}
        self._touched: dict[str, list[Bools]] = {}
        self._done = False

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        site = self._target.site
        wanted = [(t, t.requires_grad) for t in self._tensors.values()]
        handles = [site.register_forward_pre_hook(self._enter, with_kwargs=True)]
        for path, module in submodules(site):
            if module is not site and module is not self._out and _has_only_vectors(module):
                handles.append(module.register_forward_pre_hook(self._norm_hook(path)))
        handles.append(self._out.register_forward_pre_hook(self._leave))
        try:
            for tensor, _ in wanted:
                tensor.requires_grad_(True)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for tensor, before in wanted:
                tensor.requires_grad_(before)

    def trace(self) -> UnitTrace:
        shapes = {path: t.shape for path, t in self._tensors.items()}
        shapes |= {_argument(name): t.shape for name, t in self._arguments.items()}
        shapes |= {_norm(path): t.shape for path, t in self._norm_inputs.items()}
        units = self._target.units
        touched = {
            key: tuple(self._touched.get(key) or (np.zeros((units, n), dtype=bool) for n in shape))
            for key, shape in shapes.items()
        }
        return UnitTrace(
            name=self._target.name,
            units=units,
            reached=self._done,
            touched={path: touched[path] for path in self._tensors},
            arguments={name: touched[_argument(name)] for name in self._arguments},
            norms={path: touched[_norm(path)][-1] for path in self._norm_inputs},
        )

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cut the site off from what ran before it, and watch its arguments."""
        if self._done:
            return None
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        copies: dict[int, Tensor] = {}  # some modules ask whether two arguments are the same tensor
        watched = self._arguments

        def leaf(name: str, value: Any) -> Any:
            if type(value) in (tuple, list):
                items = cast("Sequence[Any]", value)
                return type(value)(leaf(f"{name}[{i}]", item) for i, item in enumerate(items))
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            if id(value) not in copies:
                watched[name] = value.detach().clone().requires_grad_()
                copies[id(value)] = watched[name].clone()  # may be written to
            return copies[id(value)]

        return (
            tuple(leaf(names[i] if i < len(names) else str(i), x) for i, x in enumerate(args)),
            {name: leaf(name, x) for name, x in kwargs.items()},
        )

    def _norm_hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def remember(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not self._done and args and isinstance(args[0], Tensor) and args[0].requires_grad:
                self._norm_inputs.setdefault(path, args[0])

        return remember

    def _leave(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Differentiate every unit's columns, and let the model continue without this graph."""
        z: Tensor = args[0]
        if not self._done:
            self._done = True
            self._differentiate(z)
        return (z.detach(), *args[1:])

    def _differentiate(self, z: Tensor) -> None:
        target = self._target
        if z.shape[-1] != len(target.columns):
            raise ValueError(
                f"{target.name} hands {z.shape[-1]} columns to {target.out!r}, and the units were "
                f"given for {len(target.columns)}."
            )
        prefix = f"{target.out}." if target.out else ""
        mine = {prefix + name for name, _ in self._out.named_parameters()}
        before = {path: t for path, t in self._tensors.items() if path not in mine}
        before |= {_argument(name): t for name, t in self._arguments.items()}
        before |= {_norm(path): t for path, t in self._norm_inputs.items()}
        behind = {path: t for path, t in self._tensors.items() if path in mine}
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(z.shape, generator=generator).to(z)
        columns = torch.as_tensor(target.columns, device=z.device)
        for unit in range(target.units):
            only = (columns == unit).to(z.dtype)
            if z.requires_grad:
                self._note(unit, before, z, direction * only)
            if behind:
                # The projection itself: the unit's columns alone, in every direction of its output.
                output: Tensor = self._out.forward(z.detach() * only)
                random = torch.randn(output.shape, generator=generator).to(output)
                self._note(unit, behind, output, random)

    def _note(self, unit: int, tensors: Mapping[str, Tensor], value: Tensor, along: Tensor) -> None:
        # The stubs do not know that `allow_unused` gives None.
        gradients = cast(
            "tuple[Tensor | None, ...]",
            torch.autograd.grad(
                value, list(tensors.values()), along, retain_graph=True, allow_unused=True
            ),
        )
        for key, gradient in zip(tensors, gradients, strict=True):
            if gradient is None:
                continue
            found = gradient.abs() > 0  # NaN says nothing
            if key not in self._touched:
                shape = gradient.shape
                self._touched[key] = [np.zeros((self._target.units, n), dtype=bool) for n in shape]
            for axis, into in enumerate(self._touched[key]):
                others = tuple(a for a in range(found.ndim) if a != axis)
                into[unit] |= (found.any(dim=others) if others else found).cpu().numpy()


def _has_only_vectors(module: nn.Module) -> bool:
    own = [p.ndim for p in module.parameters(recurse=False)]
    return bool(own) and set(own) == {1} and not any(True for _ in module.children())


def _path(site: nn.Module, module: nn.Module) -> str:
    return next(path for path, found in submodules(site) if found is module)


def _argument(name: str) -> str:
    return f"argument {name}"


def _norm(path: str) -> str:
    return f"input of {path}"


def _named(tensors: object) -> dict[str, Tensor]:
    return dict(cast("Iterator[tuple[str, Tensor]]", tensors))
