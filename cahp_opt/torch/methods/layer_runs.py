"""Runs of a whole model that begin at one of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.recovery.layer_walk import (
    first_input,
    in_one_list,
    layer_of,
    passing_through,
    with_first_input,
)
from cahp_opt.torch.running.batches import Batch, inputs_of


@dataclass(frozen=True, eq=False)
class Passed:
    """How one run passed the layers of a model.

    Args:
        entered: the residual stream that enters every layer, ``[batch, tokens, hidden]`` each.
        beside: what every layer returns beside the stream; None where it returns the stream alone.
    """

    entered: list[Tensor] = field(default_factory=list[Tensor])
    beside: list[tuple[Any, ...] | None] = field(default_factory=list[tuple[Any, ...] | None])


class LayerRuns:
    """The outputs of a model, of runs from the start or from the layer of a block.

    What changes in a block changes nothing before its layer, so a run that differs there alone from one
    that was made before may begin at that layer. This is possible where all layers with blocks stand in
    one list, run once each, and hand on nothing but the residual stream; whether it is so is tried on a
    batch. Elsewhere every run begins at the start.

    Args:
        prunable: the blocks of the model, which is in evaluation mode.
        fidelity: takes the output.
        batch: what is tried.
    """

    def __init__(self, prunable: Prunable, fidelity: Fidelity, batch: Batch) -> None:
        self._model, self._fidelity = prunable.model, fidelity
        self._layers, self._start_of = _layers(prunable)
        if not self._resumes_alike(batch):
            self._layers = ()

    @property
    def resumes(self) -> bool:
        """Whether a run can begin at the layer of a block."""
        return bool(self._layers)

    def whole(self, batch: Batch) -> tuple[Tensor, Passed]:
        """The output of a whole run, ``[batch, ...]``, and how it passed the layers."""
        passed = Passed()

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            passed.entered.append(first_input(module, args, kwargs))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            passed.beside.append(None if isinstance(output, Tensor) else tuple(output[1:]))

        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(leave).remove)
            return self._output(batch), passed

    def from_block(self, block: int, batch: Batch, passed: Passed) -> Tensor:
        """The output ``[batch, ...]`` of a run that begins at the layer of a block.

        Args:
            block: the number of the block.
            batch: the batch.
            passed: how a run that is the same up to that layer passed the layers.
        """
        return (
            self._from_layer(self._start_of[block], batch, passed)
            if self.resumes
            else self._output(batch)
        )

    def _from_layer(self, start: int, batch: Batch, passed: Passed) -> Tensor:
        def enter(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return with_first_input(module, args, kwargs, passed.entered[start])

        with ExitStack() as stack:
            for layer, beside in zip(self._layers[:start], passed.beside, strict=False):
                stack.enter_context(passing_through(layer, beside))
            hook = self._layers[start].register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(hook.remove)
            return self._output(batch)

    def _output(self, batch: Batch) -> Tensor:
        return self._fidelity.output(self._model(**inputs_of(batch)), batch)

    def _resumes_alike(self, batch: Batch) -> bool:
        """Whether runs from every layer give what a whole run gives."""
        if not self._layers:
            return False
        try:
            whole, passed = self.whole(batch)
            if len(passed.entered) != len(self._layers):
                return False  # one ran several times, or not at all
            starts = sorted({*self._start_of})
            outputs = [self._from_layer(start, batch, passed) for start in starts]
        except Exception:  # model code raises anything over layers that pass on something else
            return False
        return all(torch.allclose(output, whole) for output in outputs)


def _layers(prunable: Prunable) -> tuple[Sequence[nn.Module], Sequence[int]]:
    """The layers in the order of the path, and the number of each block's layer; empty if they do not stand in
    one list."""
    try:
        own = [layer_of(prunable.model, block) for block in prunable]
    except ValueError:
        return (), ()
    found = in_one_list(prunable.model, own)
    if found is None:
        return (), ()
    layers = tuple(found)
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    return layers, [numbers[id(layer)] for layer in own]
