"""Runs that two models are compared on: a batch, with padding and without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch.running.batches import Batch, device_of, inputs_of, prepare
from cahp_opt.torch.running.cache_tensors import takes_cache
from cahp_opt.torch.running.made_up_inputs import headless, sample_inputs
from cahp_opt.torch.running.undisturbed import evaluating


@dataclass(frozen=True, eq=False)
class Trial:
    """One run: a batch, and whether to run the model without its head."""

    batch: Batch
    bare: bool

    def part_of(self, model: nn.Module) -> nn.Module:
        """The model to run: the whole, or that without its head."""
        return headless(model) if self.bare else model


def make_trials(model: nn.Module, batch: object | None) -> list[Trial]:
    """The runs to compare: one with padding and one without, if the unpruned model takes both.

    Raises:
        ValueError: if the batch cannot be used, or none is given and the model's configuration does
            not state its inputs.
    """
    bare = batch is None
    given = _made_up(model) if bare else inputs_of(prepare(batch, model, "batch"))
    trials = [Trial(given, bare)]
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if isinstance(ids, Tensor) and ids.ndim == 2:
        other = {**given, "attention_mask": _some_padding(ids)}
        if isinstance(mask, Tensor) and not bool((mask != 0).all()):
            del other["attention_mask"]
        trial = Trial(other, bare)
        if failure(model, trial) is None:  # some models want a mask, or padding of another kind
            trials.append(trial)
    return trials


def _made_up(model: nn.Module) -> Batch:
    """Random inputs on which the model runs without its head."""
    name, base = type(model).__name__, headless(model)
    made = sample_inputs(base)
    if made is None:
        raise _batch_needed(f"the configuration of {name} does not state its inputs")
    device = device_of(base)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    batch: dict[str, Any] = {
        k: v.to(device, dtype if v.is_floating_point() else None) for k, v in made.items()
    }
    if takes_cache(base):
        batch["use_cache"] = False
    error = failure(model, Trial(batch, bare=True))
    if error is not None:
        what = f"{name} does not run on inputs made from its configuration ({error})"
        raise _batch_needed(what) from error
    return batch


def _batch_needed(why: str) -> ValueError:
    return ValueError(f"`batch` is needed to check the sliced model: {why}; pass a small batch.")


def _some_padding(ids: Tensor) -> Tensor:
    """An attention mask in which the last third of every other row is padding."""
    mask = torch.ones_like(ids)
    mask[1 - len(ids) % 2 :: 2, ids.shape[1] - ids.shape[1] // 3 :] = 0
    return mask


def failure(model: nn.Module, trial: Trial) -> Exception | None:
    """The error of the unpruned model on a trial; None if it runs."""
    try:
        with evaluating(model), torch.no_grad():
            trial.part_of(model)(**trial.batch)
    except Exception as error:  # model code raises anything over inputs that it did not expect
        return error
    return None
