"""Running a model only as far as one block, from where an earlier run left off."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cahp_opt.torch.blocks.finder import Prunable, PrunableBlock
from cahp_opt.torch.running.batches import Batch, inputs_of
from cahp_opt.torch.running.gates import capture_head_outputs


class _Reached(Exception):
    """Ends the forward pass where the run was meant to stop."""


@dataclass(frozen=True, eq=False)
class Point:
    """The activations of a walk at a block.

    Args:
        residual: the residual stream as it enters the block's layer, ``[batch, tokens, hidden]``.
        heads: the input of the output projection, ``[batch, tokens, width]``.
        out: the output of the output projection, ``[batch, tokens, hidden]``.
    """

    residual: Tensor
    heads: Tensor
    out: Tensor


class LayerWalk:
    """Runs one model block after block over the same batches.

    A transformer layer reads the residual stream as its first input, before or after the norm alike, so
    a run can resume at any layer: earlier layers pass their input through, and the layer's first input
    is replaced by the remembered one. One residual stream per batch is remembered, up to a limit of
    memory; batches beyond it run from the start each time. So do layers that are not in one list
    (two towers, an encoder and a decoder), because others may read the output of skipped ones.

    Args:
        prunable: the blocks of the model, which is in evaluation mode.
        memory: bytes of residual streams to remember.

    Raises:
        ValueError: if two blocks share a layer, or a block is in none.
    """

    def __init__(self, prunable: Prunable, memory: int) -> None:
        self.model = model = prunable.model
        self.blocks = prunable.blocks
        self._layers = [layer_of(model, block) for block in prunable]
        if len({id(layer) for layer in self._layers}) != len(self._layers):
            raise ValueError(
                "`model` has layers with more than one attention block (such as cross-attention), which "
                "refitting cannot walk; refit is for encoders and decoder-only models."
            )
        self._memory = memory if _in_one_list(model, self._layers) else 0
        self._remembered: dict[int, tuple[int, Tensor]] = {}
        self._rest: dict[int, tuple[Any, ...] | None] = {}

    def to(self, block: int, batch: Batch, number: int) -> Point:
        """Run ``batch`` up to the output projection of ``block``.

        Args:
            block: where to stop; must not be before the block of the previous walk with this batch.
            batch: the batch.
            number: the position of the batch in the data.
        """
        found: dict[str, Tensor] = {}
        name = self.blocks[block].name

        def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found["residual"] = first_input(layer, args, kwargs)

        def stop(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if "residual" in found and output.shape != found["residual"].shape:
                raise ValueError(
                    f"block {name!r} writes rows {list(output.shape)} and its layer reads rows "
                    f"{list(found['residual'].shape)} (windows, perhaps), which refitting cannot "
                    "match; this model is not supported."
                )
            found["heads"], found["out"] = args[0], output
            raise _Reached

        with ExitStack() as stack:
            hook = self._layers[block].register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(hook.remove)
            out = self.blocks[block].out
            stack.callback(out.register_forward_hook(stop).remove)
            self._run(block, batch, number)
        if "out" not in found or "residual" not in found:
            raise ValueError(
                f"`model` did not run block {name!r} on this input; refit needs batches that every block "
                "sees."
            )
        self._remember(number, block, found["residual"])
        return Point(found["residual"], found["heads"], found["out"])

    def through(self, block: int, batch: Batch, number: int) -> Tensor:
        """Run ``batch`` to the end of the layer of ``block``: the layer's output
        ``[batch, tokens, hidden]``.

        Args:
            block: the block of the previous walk with this batch.
            batch: the batch.
            number: the position of the batch in the data.
        """
        found: list[Tensor] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            found.append(output if isinstance(output, Tensor) else output[0])
            raise _Reached

        with ExitStack() as stack:
            stack.callback(self._layers[block].register_forward_hook(stop).remove)
            self._run(block, batch, number)
        return found[0]

    def layer(self, block: int) -> nn.Module:
        """The layer around a block."""
        return self._layers[block]

    def _run(self, block: int, batch: Batch, number: int) -> None:
        """Run ``batch`` from its remembered stream until a hook in the layer of ``block`` ends the
        run."""
        start, state = self._remembered.get(number, (0, None))

        def resume(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_first_input(layer, args, kwargs, state)

        with ExitStack() as stack:
            if state is not None:
                stack.enter_context(self._skipping(start))
                hook = self._layers[start].register_forward_pre_hook(
                    resume, with_kwargs=True, prepend=True
                )
                stack.callback(hook.remove)
            for index in range(start, block):
                if index not in self._rest:  # learn once what a layer returns beside its output
                    learn = self._layers[index].register_forward_hook(self._learner(index))
                    stack.callback(learn.remove)
            with suppress(_Reached):
                self.model(**inputs_of(batch))

    def _remember(self, number: int, block: int, residual: Tensor) -> None:
        size = residual.numel() * residual.element_size()
        if number not in self._remembered:
            if size > self._memory:
                return
            self._memory -= size
        self._remembered[number] = (block, residual)

    def _learner(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def learn(layer: nn.Module, args: Any, output: Any) -> None:
            self._rest[index] = None if isinstance(output, Tensor) else tuple(output[1:])

        return learn

    @contextmanager
    def _skipping(self, start: int) -> Generator[None, None, None]:
        """Layers before ``start`` return their input, in the form they return their output."""
        with ExitStack() as stack:
            for index in range(start):
                stack.enter_context(_forward_replaced(self._layers[index], self._rest[index]))
            yield


@contextmanager
def _forward_replaced(
    layer: nn.Module, rest: tuple[Any, ...] | None
) -> Generator[None, None, None]:
    def pass_through(*args: Any, **kwargs: Any) -> Any:
        hidden = first_input(layer, args, kwargs)
        return hidden if rest is None else (hidden, *rest)

    own = vars(layer)  # other libraries put a forward there too; it must come back
    before = own.get("forward")
    own["forward"] = pass_through
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def check_runs_once(prunable: Prunable, batch: Batch) -> None:
    """Refuse a model that runs a block several times: a walk would only see the first run.

    Raises:
        ValueError: naming the block.
    """
    runs = [0] * len(prunable)

    def count(block: int, outputs: Tensor) -> None:
        del outputs
        runs[block] += 1

    with capture_head_outputs(prunable, count):
        prunable.model(**inputs_of(batch))
    for block, found in zip(prunable, runs, strict=True):
        if found > 1:
            raise ValueError(
                f"`model` runs block {block.name!r} {found} times per pass, with the same weights, which "
                "one fit cannot serve; refitting this model is not supported."
            )


def layer_of(model: nn.Module, block: PrunableBlock) -> nn.Module:
    """The transformer layer around a block: its nearest ancestor that is an element of a ModuleList.

    Raises:
        ValueError: if there is none.
    """
    path = block.name.split(".")
    for end in range(len(path), 0, -1):
        if isinstance(model.get_submodule(".".join(path[: end - 1])), nn.ModuleList):
            return model.get_submodule(".".join(path[:end]))
    raise ValueError(
        f"block {block.name!r} is not in a list of layers, so its residual stream cannot be found; "
        "refitting this model is not supported."
    )


def _in_one_list(model: nn.Module, layers: list[nn.Module]) -> bool:
    wanted = {id(layer) for layer in layers}
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return any(wanted <= {id(layer) for layer in one} for one in lists)


def first_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among a layer's arguments, ``[batch, tokens, hidden]``.

    Raises:
        ValueError: if the layer is called without it.
    """
    value = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(value, Tensor):
        raise ValueError(
            f"a layer of type {type(layer).__name__} was called without hidden states as its first "
            "argument; refitting this model is not supported."
        )
    return value


def with_first_input(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments with another residual stream."""
    first_input(layer, args, kwargs)
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": value}
