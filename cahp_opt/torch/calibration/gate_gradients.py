"""Gate gradients: salience, the Gauss-Newton and the Fisher matrix, under random masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cahp_opt.arrays import Floats
from cahp_opt.stats.totals import Total
from cahp_opt.torch.blocks.finder import Attention
from cahp_opt.torch.calibration.seeded_draws import digests, generators
from cahp_opt.torch.evaluation.fidelity import Fidelity
from cahp_opt.torch.running.batches import Batch, batch_size, examples, inputs_of
from cahp_opt.torch.running.gates import gated


class GradientSums:
    """Adds up gate gradients, one backward per density and batch with gates ``[batch, n]``; with Fisher
    matrices two, after one forward.

    At density ``rho`` every example draws its own mask of independent gates, 1 with probability
    ``rho`` and else 0, and a probe of its dense output. A gate is differentiable at 0 too: the
    gradient says what the unit would add. A mask without any unit is an ordinary draw (the residual
    stream still carries the input), so none is drawn again, and the masks stay independent.

    Args:
        model: the model, in evaluation mode.
        attention: its blocks.
        fidelity: what is differentiated.
        densities: of the masks; 1 is the unpruned model.
        seed: of the masks and probes, together with each example's content.
        fisher: whether gradients of the task loss are taken under every density, and not only for the
            salience.
    """

    def __init__(
        self,
        model: nn.Module,
        attention: Attention,
        fidelity: Fidelity,
        densities: Sequence[float],
        seed: int,
        *,
        fisher: bool = False,
    ) -> None:
        self._model, self._attention, self._fidelity, self._seed = model, attention, fidelity, seed
        self._space = space = attention.space
        self._salience: Floats = np.zeros(space.n)
        self._outer: dict[float, Floats] = {rho: np.zeros((space.n, space.n)) for rho in densities}
        self._fisher: dict[float, Floats] = {
            rho: np.zeros((space.n, space.n)) for rho in densities if fisher
        }
        self._count = 0

    def add(self, batch: Batch, dense: Tensor, *, together: bool) -> None:
        """Add one batch.

        Args:
            batch: the batch.
            dense: its dense output.
            together: whether the first axis of all activations is that of the examples, so that
                every example can have gates of its own; otherwise examples run one by one.

        Raises:
            ValueError: naming the block if a gradient is not finite, or if Fisher matrices are wanted of
                a batch without labels.
        """
        if together:
            self._add(batch, dense)
            return
        for i in range(batch_size(batch)):
            self._add(examples(batch, i, i + 1), dense[i : i + 1])

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

    def salience(self) -> Total:
        """Sum over examples of the absolute gradient at the unpruned model (Michel et al. 2019)."""
        return Total(self._salience, self._count)

    def gauss_newton(self) -> dict[float, Total]:
        """By density, the sum over examples of ``g g'``."""
        return {rho: Total(outer, self._count) for rho, outer in self._outer.items()}

    def fisher(self) -> dict[float, Total]:
        """By density, the sum over examples of ``g g'`` of the task loss; empty unless asked for."""
        return {rho: Total(outer, self._count) for rho, outer in self._fisher.items()}

    def _gradients(
        self, batch: Batch, masks: np.ndarray, probe: Tensor, with_loss: bool
    ) -> tuple[Floats, Floats | None]:
        """Gate gradients ``[batch, n]`` of the probed output and, if asked and labelled, of the loss."""
        exact = probe.dtype == torch.float64
        dtype = torch.float64 if exact else torch.float32
        with torch.enable_grad():
            gates = torch.tensor(masks, dtype=dtype, device=probe.device, requires_grad=True)
            # One example owns all activations, whatever their first axis is.
            with gated(self._attention, gates[0] if len(gates) == 1 else gates):
                output = self._fidelity.output(self._model(**inputs_of(batch)), batch)
            loss = self._fidelity.loss(output, batch) if with_loss else None
            by_loss: Floats | None = None
            if loss is not None:
                (gradient,) = torch.autograd.grad(loss.sum(), gates, retain_graph=True)
                by_loss = self._finite(gradient)
            (gradient,) = torch.autograd.grad((output * probe).sum(), gates)
        return self._finite(gradient), by_loss

    def _finite(self, gradient: Tensor) -> Floats:
        array: Floats = gradient.detach().cpu().double().numpy()
        bad = np.flatnonzero(~np.isfinite(array).all(axis=0))
        if bad.size:
            name = self._space.blocks[int(self._space.block_of[bad[0]])].name
            raise ValueError(
                f"the gate gradients of block {name!r} hold NaN or infinite values; check the model's "
                "weights and labels, or calibrate in float32."
            )
        return array
