"""What a run would do: shapes and one timed batch, and the arithmetic of the passes over them."""

from __future__ import annotations

import math
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from cahp_opt.costs.budget import Budget, BudgetError
from cahp_opt.costs.profile import Profile
from cahp_opt.progress import Stages
from cahp_opt.runs.forecast import Forecast, Passes, StageForecast
from cahp_opt.runs.measuring import Measuring
from cahp_opt.runs.method import measured_for
from cahp_opt.runs.plan import OutputOptions, PruningPlan
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.texts import TextSplit
from cahp_opt.torch.calibration.chunks import memory_for_statistics
from cahp_opt.torch.calibration.class_maps import class_labels
from cahp_opt.torch.calibration.shares import Share
from cahp_opt.torch.calibration.statistics_bytes import read_shapes
from cahp_opt.torch.evaluation.fidelity import fidelity_of
from cahp_opt.torch.forecast.calibration_passes import CalibrationForecast
from cahp_opt.torch.forecast.timed_batch import TimedBatch, positions
from cahp_opt.torch.forecast.walk_passes import WalkedModel, WalkForecast, fit_bytes
from cahp_opt.torch.methods.model_method import ModelMethod
from cahp_opt.torch.pipeline.pruning_run import check, task_of
from cahp_opt.torch.pipeline.run import Batches, Named, PruningRun
from cahp_opt.torch.running.batches import batch_size

_WEIGHT = 4  # bytes of the weight of a token


def forecast_pruning(
    named: Named,
    texts: TextSplit,
    plan: PruningPlan,
    output: OutputOptions,
    *,
    profile: Profile | None = None,
    stages: Stages | None = None,
) -> Forecast:
    """What :func:`~cahp_opt.torch.pipeline.pruning_run.run_pipeline` would do with the same arguments.

    It makes the checks that come before long work, runs one batch to time it, and writes nothing.

    Args:
        named: the unpruned model.
        texts, plan, output, profile: as there.
        stages: shows the stages; None for nothing.

    Raises:
        ValueError: for a model, texts or options that cannot be used.
    """
    told = stages or Stages()
    with tempfile.TemporaryDirectory() as folder:
        run = check(named, texts, plan, profile, Path(folder), output, told)
    with told.stage("forecast"):
        return RunForecast(run, plan, profile).forecast()


@dataclass(frozen=True, eq=False)
class RunForecast:
    """The forecast of a run that was checked.

    Args:
        run: the run.
        plan: its options.
        profile: the measured costs; None where they are not there yet.
    """

    run: PruningRun
    plan: PruningPlan
    profile: Profile | None = None

    def forecast(self) -> Forecast:
        """All stages that run models over texts."""
        stages = [self._calibrate(), *self._evaluate("evaluate")]
        recovery = self._recovery
        if recovery is Recovery.MASK_TUNING:
            stages.append(self._tune_masks())
        if recovery.refits:
            stages.append(self._refit())
        if recovery is Recovery.FINETUNE:
            stages.append(self._finetune())
        if recovery.repairs:
            stages += self._evaluate("evaluate again")
        return Forecast(
            self.run.texts.counts,
            sum(p.numel() * p.element_size() for p in self.run.model.parameters()),
            self.batch.times,
            tuple(stages),
            tuple(self._notes()),
        )

    @cached_property
    def batch(self) -> TimedBatch:
        """The batch that was timed: the one of median size."""
        batches = sorted(self._texts, key=positions)
        return TimedBatch.of(
            self.run.prunable,
            batches[len(batches) // 2],
            self.run.fidelity or fidelity_of(self.run.model),
            gradients=self._gradients,
        )

    @cached_property
    def calibration(self) -> CalibrationForecast:
        """The forecast of the statistics."""
        run, first = self.run, self._texts[0]
        signatures = "signatures" in self._measuring
        parts = run.prunable.feed_forward
        return CalibrationForecast(
            self._measuring,
            [batch_size(batch) for batch in self._texts],
            read_shapes(run.prunable),
            run.prunable.space.n,
            self.batch.probes,
            self.batch.losses,
            ordered=any(part.cut.whole for part in parts),
            weighted=self._weighted,
            classes=max(map(max, map(class_labels, self._texts))) + 1
            if signatures and "labels" in first
            else 0,
            memory=memory_for_statistics(self._measuring.amounts),
        )

    @cached_property
    def _measuring(self) -> Measuring:
        run = self.run
        task = task_of(run.named, self.plan, self._budget, labelled=run.texts.labelled)
        found = measured_for(self.plan.method, task, self.plan.measuring)
        return found.ordering_neurons() if self.run.prunable.feed_forward else found

    @property
    def _budget(self) -> Budget:
        """The budget of the run, or one about as tight where costs have to be measured first."""
        space, target = self.run.prunable.space, self.plan.target
        if not target.goals:
            return target.numbers(space)
        with suppress(BudgetError):
            if self.profile is not None:
                return target.budget(space, self.profile)
        return Budget(space, maximum=np.maximum(space.units // 2, 1))

    @property
    def _recovery(self) -> Recovery:
        return self.plan.applying.recovery.recovery

    @property
    def _texts(self) -> Batches:
        return self.run.texts.calibration

    @property
    def _gradients(self) -> bool:
        needed = {"salience", "gauss_newton", "fisher", "sensitivity"}
        trained = self._recovery in (Recovery.FINETUNE, Recovery.MASK_TUNING)
        return trained or self._weighted or self._measuring.any(needed)

    @property
    def _weighted(self) -> bool:
        """Whether the calibration takes the weights of tokens from gradients."""
        return self.run.weights is not None and self.run.weights.differentiates

    @cached_property
    def _walked(self) -> WalkedModel:
        return WalkedModel.of(
            self.run.prunable,
            self._texts[0],
            feed_forward=self.plan.applying.recovery.feed_forward
            if self._recovery.refits
            else bool(self.run.prunable.feed_forward),
            attention_too=self._recovery.refits,
        )

    @cached_property
    def _walk(self) -> WalkForecast:
        memory = self.plan.applying.recovery.stream_bytes
        weights = self.run.weights
        keeping = weights is not None and weights.streams.wants(0) and Share.here().processes == 1
        return self._walked.over([*map(positions, self._texts)], memory, keeping=keeping)

    def _calibrate(self) -> StageForecast:
        found = self.calibration
        plain, weighted = found.products
        sums = (plain + found.sensitive * weighted) / multiplications(self.run.model)
        held = dict(found.statistics)
        held.update(self._beside)
        return self._stage("calibrate", self._texts, replace(found.passes, sums=sums), held)

    def _evaluate(self, name: str) -> list[StageForecast]:
        batches = self.run.texts.held_out
        return [self._stage(name, batches, Passes(dense=1, sliced=1), {})] if batches else []

    def _refit(self) -> StageForecast:
        passes = self._over_layers()
        held = {
            "streams and inputs": self._walk.held,
            "sums and solution of a layer": max(
                (fit_bytes(s.width, s.hidden) for s in self._walked.shapes), default=0
            ),
        }
        held.update(self._beside)
        return self._stage("refit", self._texts, passes, held)

    def _tune_masks(self) -> StageForecast:
        weights = Passes(dense=1, backward=self.batch.probes)
        sums = max((8 * s.width * (s.width + s.hidden) for s in self._walked.shapes), default=0)
        held = {"streams and inputs": self._walk.held, "sums of a layer": sums}
        return self._stage("tune masks", self._texts, self._over_layers() + weights, held)

    def _over_layers(self) -> Passes:
        share, walk = self._walked.attention_share, self._walk
        sums = sum(
            s.width * (s.width + (1 + again) * s.hidden)
            for s, again in zip(self._walked.shapes, walk.runs_again, strict=True)
        )
        return Passes(
            dense=walk.dense.passes(share),
            sliced=walk.sliced.passes(share),
            sums=sums / multiplications(self.run.model),
        )

    def _finetune(self) -> StageForecast:
        epochs = self.plan.applying.recovery.epochs
        passes = Passes(dense=epochs, sliced=epochs, sliced_backward=epochs)
        weights = sum(p.numel() for p in self.run.model.parameters())
        held = {"gradients and moments of the optimiser": 12 * weights}
        return self._stage("finetune", self._texts, passes, held)

    @property
    def _beside(self) -> dict[str, int]:
        """The bytes of what a calibration takes for the refit."""
        weights = _WEIGHT * len(self.run.prunable) * sum(map(positions, self._texts))
        found = {"weights of tokens": weights if self._weighted else 0}
        if self.run.weights is not None:
            found["streams of the unpruned model"] = self._walk.kept
        return {name: size for name, size in found.items() if size}

    def _stage(
        self, name: str, batches: Batches, passes: Passes, held: dict[str, int]
    ) -> StageForecast:
        number = sum(map(batch_size, batches))
        seconds = self.batch.times.seconds(passes, sum(map(positions, batches)))
        return StageForecast(name, number, passes, held, seconds)

    def _notes(self) -> list[str]:
        notes = [
            "beside the passes there are the timing of the model, the order of the neurons, the solver, and solving "
            "for the refitted weights."
        ]
        if size := self.calibration.on_disk:
            notes.append(
                f"the statistics of all blocks take {size / 2**30:.3g} GiB, more than `--statistics-memory` allows, so "
                f"that they are measured in {len(self.calibration.parts)} passes and lie in the folder of the output "
                "until they are written."
            )
        if isinstance(self.plan.method, ModelMethod):
            notes.append(
                f"`--method {self.plan.method.name}` runs the model itself while it chooses; its passes are "
                "not in these numbers."
            )
        if self._recovery.repairs and self._walk.remembered < 1:
            notes.append(
                f"the residual streams of {100 * self._walk.remembered:.0f} % of the texts fit into the memory that "
                "the recovery has for them, and over the others every layer runs again for all that follow; "
                f"`--stream-memory {math.ceil(10 * self._walk.enough / 2**30) / 10}` would hold all."
            )
        return [*self.run.notes, *notes]


def multiplications(model: nn.Module) -> int:
    """The multiplications of a forward pass per token: every number in a matrix that is not an embedding's, in models
    that use each once."""
    return sum(
        weight.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
        if weight.ndim > 1
    )
