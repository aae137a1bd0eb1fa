"""K-prune: block by block, choose by the knowledge of single units, drop, and repair (Park et al. 2024)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cahp_opt.arrays import Bools
from cahp_opt.costs.budget import Budget
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, Selection
from cahp_opt.solver import Status
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.methods.knowledge import knowledge
from cahp_opt.torch.methods.loss_slopes import in_parts
from cahp_opt.torch.methods.model_method import Evidence, ModelMethod
from cahp_opt.torch.methods.single_units import SingleUnits
from cahp_opt.torch.methods.unpruned_outputs import UnprunedOutputs
from cahp_opt.torch.recovery.path import check_walkable
from cahp_opt.torch.recovery.refitting import LayerFits
from cahp_opt.torch.running.batches import Batch
from cahp_opt.torch.running.gates import gated
from cahp_opt.torch.running.undisturbed import evaluating


@dataclass(frozen=True)
class KPrune(ModelMethod):
    """Block by block from the input on, keeps the single heads and neurons that hold the most knowledge, and repairs
    the block before the next one is looked at.

    A unit's knowledge is ``predictive * P + representational * R``, times ``attention`` for units of attention. ``P``
    is half the mean over examples of ``(dK / dm)^2``, with ``m`` the unit's mask and ``K`` the divergence of the output
    from the unpruned model's at a temperature. ``R`` is the mean square of what the unit writes, over tokens and
    features: how far the block's output moves without it. Both are taken anew before every block, on the model as
    pruned and repaired so far. Of all masks of this block and those behind it that the budget has room for, the ones
    with the most knowledge are found, and only those of this block are kept.

    As published are the two kinds of knowledge, their weights, the order, the search over all blocks that are left,
    and the repair in closed form. Not as published: gradients are squared example by example; a head is scored whole,
    where the authors average over its columns and multiply by 64; the search is the library's dynamic program over any
    budget, where the publication drops units by their score per operation; the neurons that a block keeps are a
    multiple of the group that the budget counts; and the repair is one step of :func:`cahp_opt.torch.refit` with
    equal weights, with a ridge and a bias. The repaired weights serve the choice alone: the recovery starts from the
    slice. In the first block ``P`` is 0, because nothing differs yet, as in the publication.

    A choice takes a forward and a backward pass of all examples per block.

    Args:
        examples: texts to look at, from the start.
        predictive: weight of the predictive knowledge.
        representational: weight of the representational knowledge.
        attention: weight of units of attention beside single neurons.
        temperature: at which probabilities are compared.
        ridge: of the repair.
    """

    examples: int = 512
    predictive: float = 1.0
    representational: float = 2.5e-4
    attention: float = 1.0
    temperature: float = 2.0
    ridge: float = 1e-2

    source: ClassVar[str] = (
        "Park et al. 2024, Accurate Retraining-free Pruning for Pretrained Encoder-based Language Models, ICLR, "
        "arXiv 2308.03449"
    )
    published_with: ClassVar[Recovery] = Recovery.REFIT

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(f"`examples` must be at least 1, got {self.examples}.")
        for field in fields(self):
            number = getattr(self, field.name)
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(
                    f"`{field.name}` must be a finite number of at least 0, got {number}."
                )
        if not self.temperature:
            raise ValueError("`temperature` must be above 0, got 0.")

    @property
    def name(self) -> str:
        return "k-prune"

    def rehearse(self, prunable: Prunable, batch: Mapping[str, Tensor]) -> None:
        """Refuse a model that could not be repaired block by block.

        Raises:
            ValueError: naming the way out.
        """
        try:
            check_walkable(prunable, batch, feed_forward=bool(prunable.feed_forward))
        except ValueError as error:
            raise ValueError(
                f"{str(error).rstrip('.')}; `--method {self.name}` has to repair block by block: choose another method."
            ) from None

    def chooser_on(self, evidence: Evidence) -> Chooser:
        """Takes the examples once; every choice walks through all blocks."""
        units = SingleUnits(evidence.prunable)
        parts = list(in_parts(units.prunable, evidence.batches, self.examples))

        def choose(budget: Budget) -> Selection:
            began = time.monotonic()
            space, kept = units.keeping(self._walk(units, parts, budget, evidence))
            return Selection(
                space,
                kept,
                status=Status.FEASIBLE,
                certificate="no bound: what is kept in a block is not considered again",
                solver=self.name,
                seconds=time.monotonic() - began,
            )

        return choose

    def _walk(
        self, units: SingleUnits, parts: list[Batch], budget: Budget, evidence: Evidence
    ) -> list[Bools]:
        """The masks of all blocks, bool ``[units]`` each."""
        whole = units.prunable
        small = whole.at(copy.deepcopy(whole.model).requires_grad_(False))
        unpruned = UnprunedOutputs(whole, evidence.fidelity)
        weights = np.where(whole.space.of_attention, self.attention, 1.0)[whole.space.block_of]
        masks = np.ones(whole.space.n, dtype=np.bool_)
        fewest, most = budget.fewest.copy(), budget.most.copy()
        with torch.inference_mode(False), evaluating(small.model, whole.model):
            with torch.no_grad():
                fits = LayerFits(
                    small,
                    whole,
                    parts,
                    ridge=self.ridge,
                    feed_forward=bool(whole.feed_forward),
                    blocks_alone=True,
                )
            for number, where in enumerate(whole.space.slices):
                known = knowledge(
                    small,
                    unpruned,
                    masks,
                    parts,
                    evidence.fidelity,
                    temperature=self.temperature,
                    first=number,
                )
                worth = np.zeros(whole.space.n)  # what was chosen before stays as it is
                worth[where.start :] += self.predictive * known.predictive
                worth[where.start :] += self.representational * known.representational
                within = replace(budget, minimum=fewest, maximum=most)
                found = units.best(weights * worth, within, evidence.task)
                masks[where] = units.kept(found)[number]
                fewest[number] = most[number] = found.counts[number]
                if number in fits.blocks:
                    with torch.no_grad(), gated(small, masks):
                        fits.fit(fits.blocks.index(number))
                evidence.progress("choose block by block", number + 1, len(whole))
        return [masks[where] for where in whole.space.slices]
