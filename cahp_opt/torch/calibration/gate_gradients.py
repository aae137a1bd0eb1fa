"""Gate gradients: salience, the Gauss-Newton and the Fisher matrix, under random masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cahp_opt.arrays import Bools, Floats
from cahp_opt.runs.measuring import Measuring
from cahp_opt.space import HeadSpace
from cahp_opt.stats.statistic import Statistic
from cahp_opt.stats.totals import PairsByDensity, PerPair, PerUnit
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.calibration.collector import Collecting, Collector, Dense, Subject, at_least_0
from cahp_opt.torch.calibration.seeded_draws import digests, generators
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch, batch_size, device_of, examples, inputs_of
from cahp_opt.torch.running.gates import capture_head_outputs, gated
from cahp_opt.torch.running.idle_rows import SkippingIdleRows


@dataclass(frozen=True)
class GateGradients(Collector):
    """Asks for the gradients of the gates: the salience, and matrices under random masks.

    Args:
        examples: the number of examples, from the start; None for all.
        densities: of the masks, each in (0, 1]; 1 is the unpruned model.
        fisher: whether gradients of the task loss are taken under every density, and not only for the
            salience.

    Raises:
        ValueError: for another number or density, or Fisher matrices at no density.
    """

    examples: int | None = 256
    densities: tuple[float, ...] = (1.0, 0.5)
    fisher: bool = False

    def __post_init__(self) -> None:
        for rho in self.densities:
            if not 0 < rho <= 1:
                raise ValueError(f"`densities` must lie in (0, 1], got {rho}.")
        if self.fisher and not self.densities:
            raise ValueError(
                "`fisher` takes its matrices under the masks of `densities`, which is empty; give it 1.0 for "
                "the unpruned model."
            )
        at_least_0("gradient_examples", self.examples)

    @classmethod
    def wanted(cls, measuring: Measuring) -> GateGradients:
        """Always a collector; if nothing of it is needed, one of no examples."""
        matrices = measuring.any(("gauss_newton", "fisher"))
        return cls(
            measuring.amounts.gradient_examples if matrices or "salience" in measuring else 0,
            tuple(map(float, measuring.densities)) if matrices else (),
            "fisher" in measuring,
        )

    def start(self, subject: Subject) -> GradientSums:
        return GradientSums(subject, self.densities, fisher=self.fisher)


class GradientSums(Collecting):
    """Adds up gate gradients, one backward per density and batch with gates ``[batch, n]``; with Fisher
    matrices two, after one forward.

    At density ``rho`` every example draws its own mask of independent gates, 1 with probability
    ``rho`` and otherwise 0, and a probe of its dense output. A gate is differentiable at 0 too: the
    gradient is the effect of adding the unit. A mask without any unit is an ordinary draw (the
    residual stream still carries the input), so none is drawn again, and the masks stay
    independent.

    Args:
        subject: what is measured.
        densities, fisher: as for :class:`GateGradients`.
    """

    def __init__(self, subject: Subject, densities: Sequence[float], *, fisher: bool) -> None:
        self._prunable = subject.prunable
        self._fidelity, self._seed = subject.fidelity, subject.seed
        self._space = space = subject.prunable.space
        self._salience: Floats = np.zeros(space.n)
        self._outer: dict[float, Floats] = {rho: np.zeros((space.n, space.n)) for rho in densities}
        self._fisher: dict[float, Floats] = {
            rho: np.zeros((space.n, space.n)) for rho in densities if fisher
        }
        self._count = 0

    def add(self, batch: Batch, dense: Dense) -> None:
        """Add one batch.

        Raises:
            ValueError: naming the block if a gradient is not finite, or if Fisher matrices are wanted of
                a batch without labels.
        """
        if dense.together:
            self._add(batch, dense.output)
            return
        for i in range(batch_size(batch)):
            self._add(examples(batch, i, i + 1), dense.output[i : i + 1])

    def _add(self, batch: Batch, dense: Tensor) -> None:
        contents = digests(batch)
        for rho in sorted({1.0, *self._outer}, reverse=True):  # salience is taken at density 1
            rngs = generators(contents, self._seed, rho)
            masks = np.stack([rng.random(self._space.n) < rho for rng in rngs])
            probe = self._fidelity.probe(dense, batch, rngs)
            with_loss = rho == 1.0 or rho in self._fisher
            by_probe, by_loss = self._gradients(batch, masks, probe, with_loss=with_loss)
            if rho == 1.0:
                self._salience += np.abs(by_probe if by_loss is None else by_loss).sum(axis=0)
            if rho in self._outer:
                self._outer[rho] += by_probe.T @ by_probe
            if rho in self._fisher:
                if by_loss is None:
                    raise ValueError(
                        "`fisher` needs the gradient of a task loss, and these `batches` have no `labels` "
                        "that the model's output can be judged by; give every batch labels, or take the "
                        "Gauss-Newton matrix, which needs none, with `fisher=False`."
                    )
                self._fisher[rho] += by_loss.T @ by_loss
        self._count += batch_size(batch)

    def result(self) -> Mapping[str, Statistic]:
        """The sum over examples of the absolute gradient at the unpruned model (Michel et al. 2019), and by
        density that of ``g g'``, of the probed output and, if asked for, of the task loss."""
        found: dict[str, Statistic] = {"salience": PerUnit(self._salience, self._count)}
        for name, matrices in (("gauss_newton", self._outer), ("fisher", self._fisher)):
            if matrices:
                totals = {rho: PerPair(outer, self._count) for rho, outer in matrices.items()}
                found[name] = PairsByDensity(totals)
        return found

    def _gradients(
        self, batch: Batch, masks: Bools, probe: Tensor, with_loss: bool
    ) -> tuple[Floats, Floats | None]:
        """Gate gradients ``[batch, n]`` of the probed output and, if asked and labelled, of the loss."""
        run = run_gated(self._prunable, self._fidelity, batch, masks)
        loss = self._fidelity.loss(run.output, batch) if with_loss else None
        by_loss = None if loss is None else run.gradients(loss.sum(), again=True)
        return run.gradients((run.output * probe).sum()), by_loss


@dataclass(frozen=True, eq=False)
class GatedRun:
    """A pass with gates that can be differentiated.

    Args:
        space: the units of the gates.
        gates: the gates, ``[batch, n]``.
        output: the output behind them, as a fidelity takes it, ``[batch, ...]``.
    """

    space: HeadSpace
    gates: Tensor
    output: Tensor

    def gradients(self, value: Tensor, *, again: bool = False) -> Floats:
        """The gradient of a sum over examples by every example's gates, ``[batch, n]``.

        Args:
            value: a number that the output became.
            again: whether more gradients of the run will be asked for.

        Raises:
            ValueError: naming the block if it is not finite.
        """
        (gradient,) = torch.autograd.grad(value, self.gates, retain_graph=again)
        array: Floats = gradient.detach().cpu().double().numpy()
        bad = np.flatnonzero(~np.isfinite(array).all(axis=0))
        if bad.size:
            name = self.space.blocks[int(self.space.block_of[bad[0]])].name
            raise ValueError(
                f"the gate gradients of block {name!r} hold NaN or infinite values; check the model's "
                "weights and labels, or calibrate in float32."
            )
        return array


def run_gated(
    prunable: Prunable, fidelity: Fidelity, batch: Batch, masks: Bools | Floats
) -> GatedRun:
    """Run a model with gates of its own for every example.

    Args:
        prunable: the blocks of the model, which is in evaluation mode.
        fidelity: takes the output.
        batch: the batch, on the model's device; of one example if the first axis of some activations is another.
        masks: the gates, ``[batch, n]``.
    """
    model = prunable.model
    exact = next(model.parameters()).dtype == torch.float64
    dtype = torch.float64 if exact else torch.float32
    with torch.enable_grad():
        gates = torch.tensor(masks, dtype=dtype, device=device_of(model), requires_grad=True)
        # One example owns all activations, whatever their first axis is.
        own = gates[0] if len(gates) == 1 else gates
        with gated(prunable, own), SkippingIdleRows():
            output = fidelity.output(model(**inputs_of(batch)), batch)
    return GatedRun(prunable.space, gates, output)


def runs_together(prunable: Prunable, batch: Batch) -> bool:
    """Whether the first axis of all activations is that of the examples, tried on two of a batch."""
    rows = set[int]()

    def count(block: int, outputs: Tensor) -> None:
        del block
        rows.add(len(outputs))

    few = examples(batch, 0, 2)
    with torch.no_grad(), capture_head_outputs(prunable, count):
        prunable.model(**inputs_of(few))
    return rows <= {batch_size(few)}
