"""A few output numbers saved beside the weights, so that a model that loads wrongly is noticed.

Shapes cannot tell whether weights met the right blocks: releases of transformers rename and move
modules. The saved model's answers to inputs that need no tokenizer can.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cahp_opt.records import RecordError, read_json, reading, write_json
from cahp_opt.torch.batching import device_of
from cahp_opt.torch.preserving import evaluating
from cahp_opt.torch.sample_inputs import headless, sample_inputs

CHECK_FILE = "cahp_check.json"
"""Name of the file in a saved folder."""

_KIND, _VERSION = "output_check", 1
_NUMBERS = 16
_ALLOWED = {torch.float64: 1e-3, torch.float32: 1e-3}
_ALLOWED_IN_HALF = 0.5
"""Length of the difference over the length of the numbers. With other heads it is around one, and so it
is with wrong weights; in half precision rounding can grow to a third in a deep model."""


def write_check(model: nn.Module, folder: Path) -> None:
    """Write the check of ``model``, if it can be run on inputs made up and no random number matters."""
    found, again = _answers(model, seed=0), _answers(model, seed=1)
    if found is None or again is None or not torch.equal(found, again):
        return
    body = {"numbers": [float(x) for x in found], "precision": str(_dtype(model))}
    write_json(folder / CHECK_FILE, _KIND, _VERSION, body)


def compare_check(model: nn.Module, folder: Path) -> None:
    """Compare a loaded model with the check in its folder, if there is one and it can be run.

    Raises:
        RecordError: if the model answers something else than the one that was saved.
    """
    path = folder / CHECK_FILE
    found = _answers(model) if path.is_file() else None
    if found is None:
        return
    record = read_json(path, _KIND, _VERSION)
    with reading(path):
        expected = torch.tensor([float(x) for x in record["numbers"]], dtype=torch.float64)
        precision = str(record["precision"])
    names = {str(dtype): tolerance for dtype, tolerance in _ALLOWED.items()}
    allowed = max(names.get(name, _ALLOWED_IN_HALF) for name in (str(_dtype(model)), precision))
    if found.shape != expected.shape or not _length(found - expected) <= allowed * _length(
        expected
    ):
        raise RecordError(
            f"{folder} holds a model that answers otherwise, loaded again, than when it was saved: the "
            "installed transformers builds it in another way; load it with the release named in its card."
        )


def _answers(model: nn.Module, seed: int = 0) -> Tensor | None:
    """Some numbers of the first output; None if the model cannot be run."""
    base = headless(model)
    inputs = sample_inputs(base)
    if inputs is None or any(p.is_meta for p in model.parameters()):
        return None
    device, dtype = device_of(base), _dtype(base)
    inputs = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}
    try:
        with torch.no_grad(), evaluating(base):
            cast("Any", torch).manual_seed(seed)  # some models draw masks of their own
            output: Any = base(**inputs)
    except Exception:  # it takes something else besides, and model code raises anything then
        return None
    values = cast("tuple[object, ...]", output if isinstance(output, tuple) else output.to_tuple())
    first = next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)
    if first is None:
        return None
    flat = first.detach().double().cpu().reshape(-1)
    if not (flat.numel() and bool(flat.isfinite().all())):
        return None
    return flat[:: math.ceil(flat.numel() / _NUMBERS)]


def _length(numbers: Tensor) -> float:
    return float(numbers.square().sum().sqrt())


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
