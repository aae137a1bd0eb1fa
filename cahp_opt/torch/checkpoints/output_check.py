"""A few output numbers saved beside the weights, so that a model that loads wrongly is noticed.

Shapes do not show whether weights met the right blocks, because releases of transformers rename and
move modules. The saved model's outputs for inputs that need no tokenizer do.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cahp_opt.files.records import RecordError, read_json, reading, write_json
from cahp_opt.torch.running.batches import device_of
from cahp_opt.torch.running.made_up_inputs import headless, sample_inputs
from cahp_opt.torch.running.undisturbed import evaluating

CHECK_FILE = "cahp_check.json"
"""Name of the file in a saved folder."""

_KIND, _VERSION = "output_check", 1
_NUMBERS = 16
_ALLOWED = {torch.float64: 1e-3, torch.float32: 1e-3}
_ALLOWED_IN_HALF = 0.5
"""Length of the difference over the length of the numbers. With other heads it is around one, and so it
is with wrong weights; in half precision rounding can grow to a third in a deep model."""


class _Unanswered(Exception):
    """The model gives no numbers; the message says why."""


class _CannotRun(_Unanswered):
    """It fails on inputs that were made up from its configuration."""


def write_check(model: nn.Module, folder: Path) -> None:
    """Write the check of ``model``, or why there is none: it needs other inputs, or draws random numbers."""
    numbers: list[float] = []
    why = "random numbers change its outputs"
    try:
        found = _answers(model, seed=0)
        if torch.equal(found, _answers(model, seed=1)):
            numbers, why = [float(x) for x in found], ""
    except _Unanswered as error:
        why = str(error)
    body = {"numbers": numbers, "precision": str(_dtype(model)), "why": why}
    write_json(folder / CHECK_FILE, _KIND, _VERSION, body)


def compare_check(model: nn.Module, folder: Path) -> None:
    """Compare a loaded model with the check in its folder, if that has one and the weights are here.

    Raises:
        RecordError: if its outputs differ from those of the saved model, or it cannot run on inputs
            that the saved one ran on.
    """
    path = folder / CHECK_FILE
    if not path.is_file():
        return
    record = read_json(path, _KIND, _VERSION)
    with reading(path):
        expected = torch.tensor([float(x) for x in record["numbers"]], dtype=torch.float64)
        precision = str(record["precision"])
    if not len(expected):
        return
    try:
        found = _answers(model)
    except _CannotRun as error:
        raise RecordError(
            f"{folder} holds a model that ran when it was saved and, loaded again, cannot ({error}); load "
            "it with the releases named in its card."
        ) from error
    except _Unanswered:
        return  # its weights are elsewhere, or the part with the output is missing
    names = {str(dtype): tolerance for dtype, tolerance in _ALLOWED.items()}
    allowed = max(names.get(name, _ALLOWED_IN_HALF) for name in (str(_dtype(model)), precision))
    if not bool(found.isfinite().all()) and precision != str(_dtype(model)):
        return  # a narrower precision overflows on inputs that nobody chose
    if found.shape != expected.shape or not _length(found - expected) <= allowed * _length(
        expected
    ):
        raise RecordError(
            f"{folder} holds a model whose outputs, loaded again, differ from those when it was saved: the "
            "installed transformers builds it in another way; load it with the release named in its card."
        )


def _answers(model: nn.Module, seed: int = 0) -> Tensor:
    """Some numbers of the first output, float64.

    Raises:
        _CannotRun: if the model does not take what its configuration promises.
        _Unanswered: if it cannot be asked.
    """
    base = headless(model)
    inputs = sample_inputs(base)
    if inputs is None:
        raise _Unanswered("its configuration does not state its inputs")
    if any(p.is_meta for p in model.parameters()):
        raise _Unanswered("its weights are not in memory")
    device, dtype = device_of(base), _dtype(base)
    inputs = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}
    try:
        with torch.no_grad(), evaluating(base):
            cast("Any", torch).manual_seed(seed)  # some models draw masks of their own
            output: Any = base(**inputs)
    except Exception as error:  # model code raises anything over inputs that it did not expect
        raise _CannotRun(f"{type(error).__name__}: {error}") from error
    values = cast("tuple[object, ...]", output if isinstance(output, tuple) else output.to_tuple())
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            flat = value.detach().cpu().double().reshape(-1)
            return flat[:: math.ceil(flat.numel() / _NUMBERS)]
    raise _Unanswered("it has no output of numbers")


def _length(numbers: Tensor) -> float:
    return float(numbers.square().sum().sqrt())


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
