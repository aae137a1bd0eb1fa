"""The check that a sliced model computes the same as the masked one.

Some ways of slicing wrongly run without an error and give wrong numbers: a fused projection read in
another order, a head count left stale. So nothing is believed: the masked and the sliced model run on
the same batches, with and without padding (some errors show in one of the two only), and every
block's output is compared, because a wrong block can hide behind the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import numpy.typing as npt
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.selection import Selection
from cahp_opt.space import Unit
from cahp_opt.torch.blocks.finder import Prunable, UnsupportedModelError, blocks_cut
from cahp_opt.torch.running.batches import real_tokens
from cahp_opt.torch.running.centring import in_double
from cahp_opt.torch.running.gates import find_for, gated, kept_units
from cahp_opt.torch.running.trials import Trial, failure, make_trials
from cahp_opt.torch.running.undisturbed import evaluating
from cahp_opt.torch.slicing.rounding import shaken

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Per block depth, relative to the largest value compared."""

_SHAKEN = 3
"""The number of perturbed runs that show how far rounding moves a result small by cancellation."""


class SliceError(RuntimeError):
    """The sliced model differs from the masked model; the message says where."""


Outputs = Mapping[str, Tensor]
"""Every block's output and the model's outputs, by name, at real tokens."""


def verify_slice(
    dense: nn.Module | Prunable,
    small: nn.Module | Prunable,
    selection: Selection | npt.ArrayLike,
    batch: object | None = None,
    *,
    unit: Unit | None = None,
) -> float:
    """Compare ``dense`` masked by ``selection`` with ``small``, with and without padding.

    Args:
        dense: the model that was sliced, or its blocks if they were found already.
        small: the sliced model, or its blocks.
        selection: the selection for ``dense``, or its keep-set, bool ``[n]``.
        batch: keyword arguments for both models; None for small random inputs.
        unit: as for :func:`~cahp_opt.torch.find_attention`; a selection knows its own, and others are
            refused with it.

    Returns:
        The largest absolute difference of the models' outputs.

    Raises:
        SliceError: if a block or an output differs by more than rounding: 1e-4 (float32) or 1e-9
            (float64) of its largest value for one block, growing with the square root of their
            number; or, if the value is small because large numbers cancel, by more than it moves
            when every block's output is perturbed by half of that fraction of its terms.
        ValueError: if the selection is of another model, or no batch is given and none can be made.
    """
    whole = find_for(dense, selection, unit)
    return compare_slice(whole, blocks_cut(small), selection, batch)


def compare_slice(
    dense: Prunable, small: Prunable, selection: Selection | npt.ArrayLike, batch: object | None
) -> float:
    """:func:`verify_slice` for blocks that were found already, by a selection or a keep-set, bool
    ``[n]``."""
    kept = kept_units(dense.space, selection)
    trials = make_trials(dense.model, batch)
    return check_outputs(references(dense, trials, kept), small, trials)


def references(prunable: Prunable, trials: list[Trial], kept: Bools) -> list[Outputs]:
    """The expected traces of the sliced model: those of the model masked to ``kept``, bool ``[n]``.

    Raises:
        ValueError: if the model does not run on a trial, a block that loses units does not on any, or the
            model computes NaN, so that nothing can be compared.
        UnsupportedModelError: if the model replaced modules of its attention while it ran.
    """
    model, traces = prunable.model, list[Outputs]()
    for trial in trials:
        try:
            traces.append(run_outputs(prunable, trial, kept))
        except Exception as error:
            if failure(model, trial) is None:
                raise
            raise ValueError(
                f"`batch` cannot be run by {type(model).__name__} even before slicing: "
                f"{str(error).rstrip('.') or type(error).__name__}; pass one that it can take."
            ) from error
    there = {id(module) for module in model.modules()}
    for block in prunable:
        if not there >= {id(block.site), id(block.module), id(block.out)}:
            raise UnsupportedModelError(
                f"{block.name} ({type(block.site).__name__}) is not understood: the model replaces its "
                "modules while it runs, and new ones would know nothing of a cut."
            )
    for name, value in (item for found in traces for item in found.items()):
        if bool(value.isnan().any()):
            raise ValueError(
                f"`model` computes NaN ({name}) even before slicing, so nothing can be compared; pass a "
                "`batch` that it can take, or slice it in another precision."
            )
    for index, (block, where) in enumerate(zip(prunable, prunable.space.slices, strict=True)):
        if not kept[where].all() and not any(f"block {index} call 0" in found for found in traces):
            raise ValueError(
                f"`batch` does not reach the block {block.name!r}, so slicing it cannot be checked; "
                "pass a batch that uses it."
            )
    return traces


def run_outputs(prunable: Prunable, trial: Trial, kept: Bools | None) -> Outputs:
    """Run the model, masked to ``kept``, bool ``[n]``, if given, and keep the outputs to compare."""
    model, found = prunable.model, dict[str, Tensor]()
    calls = [0] * len(prunable)  # a block that layers share runs several times
    masked = isinstance(trial.batch.get("attention_mask"), Tensor)
    real = real_tokens(trial.batch) if masked else None

    def keep(name: str, value: object) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            # Padding rows differ between backends for reasons that have nothing to do with heads.
            by_token = real is not None and value.ndim > 2 and value.shape[:2] == real.shape
            found[name] = (value[real] if by_token else value).detach().clone()

    def listen(index: int) -> Callable[[nn.Module, object, object], None]:
        def heard(module: nn.Module, args: object, output: object) -> None:
            keep(f"block {index} call {calls[index]}", output)
            calls[index] += 1

        return heard

    base = trial.part_of(model)
    handles = [b.out.register_forward_hook(listen(i)) for i, b in enumerate(prunable)]
    try:
        with evaluating(model), torch.no_grad():
            if kept is None:
                output = base(**trial.batch)
            else:
                with gated(prunable, kept):
                    output = base(**trial.batch)
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(output, Mapping):
        for name, value in cast("Mapping[str, object]", output).items():
            keep(f"output {name!r}", value)
    else:
        values = cast("tuple[object, ...]", output if isinstance(output, tuple) else (output,))
        for i, value in enumerate(values):
            keep(f"output {i}", value)
    return found


def check_outputs(before: list[Outputs], small: Prunable, trials: list[Trial]) -> float:
    """Run the sliced model on the same trials and return the largest difference of its outputs.

    Raises:
        SliceError: if it cannot run, or something differs by more than rounding.
    """
    largest = 0.0
    each = _tolerance(small)
    allowed = min(each * math.sqrt(len(small)), 0.2)
    names = [block.name for block in small]
    for expected, trial in zip(before, trials, strict=True):
        try:
            found = run_outputs(small, trial, None)
        except Exception as error:  # model code raises anything over a shape, failed assertions too
            what = str(error) or f"it ends in a {type(error).__name__}"
            raise SliceError(f"the sliced model cannot run: {what}") from error
        where = "with padding" if "attention_mask" in trial.batch else "without padding"
        moves: Mapping[str, float] | None = None
        for name, reference in expected.items():
            value = found.get(name)
            label = f"block {names[int(name.split()[1])]!r}" if name.startswith("block ") else name
            if value is None or value.shape != reference.shape:
                shape = "is missing" if value is None else f"has shape {list(value.shape)}"
                raise SliceError(
                    f"{label} of the sliced model {shape}, and the masked model's has "
                    f"{list(reference.shape)}."
                )
            difference, scale = _difference(in_double(value), in_double(reference))
            if not difference <= allowed * scale:  # NaN must fail too
                if moves is None:
                    moves = _moves(small, trial, found, each / 2)
                most = max(allowed * scale, moves[name])
                if not difference <= most:
                    raise SliceError(
                        f"the sliced model differs from the masked one ({where}): {label} by "
                        f"{difference:.3g}, where its largest value is {scale:.3g} and {most:.3g} is "
                        "allowed."
                    )
            if not name.startswith("block "):
                largest = max(largest, difference)
    return largest


def _moves(small: Prunable, trial: Trial, found: Outputs, fraction: float) -> Mapping[str, float]:
    """How far everything in a trace moves when the blocks' outputs are perturbed."""
    moves = dict.fromkeys(found, 0.0)
    for seed in range(_SHAKEN):
        with shaken(small, fraction, seed):
            again = run_outputs(small, trial, None)
        for name, value in found.items():
            moved = again.get(name)
            if moved is not None and moved.shape == value.shape:
                moves[name] = max(moves[name], _difference(in_double(moved), in_double(value))[0])
    return moves


def _difference(value: Tensor, reference: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest finite value; infinities that are equal do not differ."""
    apart = (value - reference).abs().masked_fill(value == reference, 0.0)
    finite = reference.masked_fill(~reference.isfinite(), 0.0)
    return float(apart.amax()), float(finite.abs().amax())


def _tolerance(prunable: Prunable) -> float:
    """The difference allowed per block."""
    weights = [weight for block in prunable for weight in block.weights]
    dtypes = {w.dtype for w in weights}
    on_cuda = any(w.is_cuda for w in weights)
    if on_cuda and torch.get_float32_matmul_precision() != "highest":
        dtypes.add(torch.float16)  # TensorFloat-32 has the precision of half floats
    return max(_TOLERANCE.get(dtype, 1e-1) for dtype in dtypes)
