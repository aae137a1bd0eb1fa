"""Kwon et al. 2022: single heads and neurons by the Fisher matrix of their masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.costs.budget import Budget
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, Selection
from cahp_opt.solver import Status
from cahp_opt.torch.methods.loss_slopes import Slopes, loss_slopes
from cahp_opt.torch.methods.model_method import Evidence, ModelMethod
from cahp_opt.torch.methods.rearranging import rearranged
from cahp_opt.torch.methods.single_units import SingleUnits


@dataclass(frozen=True)
class Kwon(ModelMethod):
    """Keeps the single heads and neurons with the largest Fisher information of their masks, and then exchanges
    units within blocks by the whole Fisher matrix of the block.

    The Fisher matrix of a block is ``F = E[g g']``, with ``g`` the gradient of an example's task loss by the masks of
    the block's units, at masks of 1. First, the kept units have the largest sum of the diagonals that the budget
    allows; then, in every block, each kept unit is exchanged with a dropped one if that lowers ``d' F d``, with ``d``
    1 where a unit is dropped. This is as published, with mask tuning behind it
    (:func:`cahp_opt.torch.tune_masks`), except for two things. The search is the library's dynamic program over any
    budget, where the publication sweeps over the number of heads under times that are straight lines beyond a
    threshold. And the neurons that a block keeps are a multiple of the group that the budget counts, though any of
    them may be kept.

    The value of a selection is the sum of the diagonals that are kept, half of it being the damage that is avoided,
    and its bound holds for all sets of single units, which the exchanges may lower the value of.

    Args:
        examples: labelled texts to differentiate, from the start; the publication takes 2048.
        exchanges: whether units are exchanged after the search.
    """

    examples: int = 2048
    exchanges: bool = True

    source: ClassVar[str] = (
        "Kwon et al. 2022, A Fast Post-Training Pruning Framework for Transformers, NeurIPS, arXiv 2204.09656"
    )
    published_with: ClassVar[Recovery] = Recovery.MASK_TUNING
    labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(f"`examples` must be at least 1, got {self.examples}.")

    def chooser_on(self, evidence: Evidence) -> Chooser:
        """Takes the Fisher matrices once.

        Raises:
            ValueError: if the output has no task loss, or a gradient is not finite.
        """
        units = SingleUnits(evidence.prunable)
        slopes = loss_slopes(
            units.prunable,
            evidence.batches,
            evidence.fidelity,
            most=self.examples,
            progress=evidence.progress,
        )
        worth = np.concatenate(
            [np.mean(np.square(own, dtype=np.float64), axis=0) for own in slopes]
        )

        def choose(budget: Budget) -> Selection:
            found = units.best(worth, budget, evidence.task)
            if not self.exchanges:
                return found
            kept = [
                rearranged(fisher_of(own), mask)
                for own, mask in zip(slopes, units.kept(found), strict=True)
            ]
            space, mask = units.keeping(kept)
            value = float(units.sums(worth, space)[mask].sum())
            told = f"{found.certificate}; units of a block were exchanged behind that"
            return replace(
                found,
                space=space,
                kept=mask,
                value=value,
                bound=max(found.bound, value),
                certificate=told,
                status=Status.FEASIBLE if found.status is Status.OPTIMAL else found.status,
            )

        return choose


def fisher_of(slopes: Slopes) -> Floats:
    """The mean ``[units, units]`` over examples of the products of their gradients, ``[examples, units]``."""
    wide = slopes.astype(np.float64)
    return wide.T @ wide / len(wide)
