"""Running a layer again without what comes before a linear layer in it, whose inputs are known."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cahp_opt.torch.running.batches import Batch, batch_size, inputs_of

_TOLERANCE = 1e-4  # relative, of what a layer returns


@dataclass(frozen=True, eq=False)
class Shortcut:
    """A module of a layer that need not run where the inputs of a linear layer are known.

    Args:
        module: the module.
        out: the linear layer.
        past: whether the module returns what the linear layer does, which is part of it, rather than its
            inputs.
        beside: how many times None it returns behind that; None for the bare tensor.
    """

    module: nn.Module
    out: nn.Module
    past: bool
    beside: int | None

    @contextmanager
    def taken(self, inputs: Tensor) -> Generator[None, None, None]:
        """The module takes the inputs of the linear layer, ``[..., width]``, for granted."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            value = self.out(inputs) if self.past else inputs
            return value if self.beside is None else (value, *[None] * self.beside)

        with standing_in(self.module, forward):
            yield


@contextmanager
def standing_in(module: nn.Module, forward: Any) -> Generator[None, None, None]:
    """A module runs another function in place of its own."""
    own = vars(module)  # other libraries put a forward there too; it must come back
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def find_shortcuts(
    model: nn.Module, layers: Sequence[nn.Module], outs: Sequence[str], batch: Batch
) -> dict[str, Shortcut]:
    """The shortcuts of linear layers, by path; of those that have one.

    One is the outermost module that returned the very tensor that its linear layer read, or the one that this
    returned. All of them are tried, after other examples went through the model: a layer that then returns
    something else has none.

    Args:
        model: the model, in evaluation mode.
        layers: its transformer layers.
        outs: paths of the linear layers, in the order in which they are asked for.
        batch: to run, as it is and back to front; two examples suffice.
    """
    runs, entered = _runs(model, layers, outs, batch)
    found: dict[str, Shortcut] = {}
    order = {path: number for number, path in enumerate(entered)}
    for layer in layers:
        inside = {id(module) for module in layer.modules()}
        own = [p for p in outs if p in order and id(model.get_submodule(p)) in inside]
        # In another order a shortcut could pass by a linear layer that changes after its inputs were met.
        if own == sorted(own, key=order.__getitem__):
            tried = ((path, _of(model, layer, path, entered[path], runs)) for path in own)
            found.update({path: one for path, one in tried if one is not None})
    inputs = {path: entered[path] for path in found}
    copies = {path: values.clone() for path, values in inputs.items()}
    model(**inputs_of(_reversed(batch)))  # what modules keep for others is of these examples now
    with taking(found, inputs):
        again, _ = _runs(model, layers, (), batch)
    spoilt = {path for path in found if not torch.equal(inputs[path], copies[path])}
    for layer in layers:
        if not _close(again.get(id(layer)), runs.get(id(layer))):
            inside = {id(module) for module in layer.modules()}
            spoilt |= {path for path, one in found.items() if id(one.out) in inside}
    return {path: one for path, one in found.items() if path not in spoilt}


@contextmanager
def taking(
    shortcuts: Mapping[str, Shortcut], inputs: Mapping[str, Tensor]
) -> Generator[None, None, None]:
    """Take the shortcuts of all linear layers whose inputs are given, ``[..., width]`` each, by path."""
    with ExitStack() as stack:
        for path, values in inputs.items():
            stack.enter_context(shortcuts[path].taken(values))
        yield


class _Run(NamedTuple):
    """What a module returned, as in :class:`Shortcut`, and how often it ran."""

    output: Tensor
    beside: int | None
    times: int


def _runs(
    model: nn.Module, layers: Sequence[nn.Module], outs: Sequence[str], batch: Batch
) -> tuple[dict[int, _Run], dict[str, Tensor]]:
    """The runs of all modules in layers that return a tensor, by id, and the inputs of the linear layers, in the
    order in which they ran."""
    runs: dict[int, _Run] = {}
    entered: dict[str, Tensor] = {}
    paths = {id(model.get_submodule(path)): path for path in outs}

    def listen(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        times = runs[id(module)].times + 1 if id(module) in runs else 1
        parts: tuple[Any, ...] = output if _is_tuple(output) else (output,)
        if parts and isinstance(parts[0], Tensor) and all(part is None for part in parts[1:]):
            beside = len(parts) - 1 if _is_tuple(output) else None
            runs[id(module)] = _Run(parts[0], beside, times)
        if id(module) in paths:
            entered[paths[id(module)]] = args[0] if args else next(iter(kwargs.values()))

    with ExitStack() as stack:
        for module in {id(m): m for layer in layers for m in layer.modules()}.values():
            hook = module.register_forward_hook(listen, with_kwargs=True)
            stack.callback(hook.remove)
        model(**inputs_of(batch))
    return runs, entered


def _is_tuple(output: object) -> bool:
    return isinstance(output, tuple)


def _reversed(batch: Batch) -> Batch:
    """The examples of a batch from the last to the first, and each back to front: there may be one alone."""
    size = batch_size(batch)
    return {
        name: value.flip(0, 1)
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == size
        else value
        for name, value in batch.items()
    }


def _of(
    model: nn.Module, layer: nn.Module, path: str, inputs: Tensor, runs: Mapping[int, _Run]
) -> Shortcut | None:
    """The shortcut of one linear layer."""
    out = model.get_submodule(path)
    own = runs.get(id(out))
    if own is None or own.times > 1:
        return None
    within = {id(module) for module in out.modules()}
    for module in layer.modules():
        run = runs.get(id(module))
        if module is layer or id(module) in within or run is None or run.times > 1:
            continue
        past = any(inner is out for inner in module.modules())
        if _same(run.output, own.output if past else inputs):
            return Shortcut(module, out, past, run.beside)
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.data_ptr() == b.data_ptr()


def _close(found: _Run | None, before: _Run | None) -> bool:
    if found is None or before is None or found.output.shape != before.output.shape:
        return False
    a, b = found.output.float(), before.output.float()
    return bool((a - b).square().sum() <= _TOLERANCE**2 * b.square().sum())
