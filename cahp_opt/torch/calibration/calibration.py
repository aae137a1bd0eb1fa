"""One pass over texts that measures everything the objectives need to know about the heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cahp_opt.progress import Progress, silent
from cahp_opt.space import Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch.blocks.finder import Attention, find_attention
from cahp_opt.torch.blocks.fingerprint import fingerprint
from cahp_opt.torch.calibration.attention_maps import DivergenceSums
from cahp_opt.torch.calibration.class_maps import SignatureSums
from cahp_opt.torch.calibration.gate_gradients import GradientSums
from cahp_opt.torch.calibration.output_moments import MomentSums
from cahp_opt.torch.calibration.token_gradients import SensitivitySums
from cahp_opt.torch.calibration.token_weights import TokenWeights
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.running.batches import (
    Batch,
    batch_size,
    examples,
    inputs_of,
    labels_of,
    length,
    real_tokens,
)
from cahp_opt.torch.running.gates import capture_head_outputs
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.undisturbed import evaluating

_WRAPPERS: tuple[type[nn.Module], ...] = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    unit: Unit | None = None,
    densities: Sequence[float] = (1.0, 0.5),
    fisher: bool = False,
    gradient_examples: int = 256,
    sensitivity_examples: int = 0,
    divergence_examples: int = 0,
    signature_size: int = 0,
    token_weights: TokenWeights | None = None,
    fidelity: Fidelity | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> HeadStats:
    """Measure the heads of ``model`` on texts, images or sound.

    Every statistic is a sum over examples, and every random draw belongs to an example's own content,
    so batching, padding and order change nothing but rounding, and ``calibrate(a) + calibrate(b)`` equals
    calibrating on both as long as neither cap below binds. The model runs in evaluation mode and is
    left as it was found: modes, gradients, hooks, attention implementation and random states; also
    after an exception or Ctrl-C.

    The memory it takes does not grow with the data: batches are read one by one and none is kept. The
    model may be spread over devices or offloaded. In half precision only the forward passes are, and the
    sums are double. For several processes see :func:`~cahp_opt.torch.gather_stats`.

    Args:
        model: a model whose attention :func:`~cahp_opt.torch.blocks.finder.find_attention` understands.
        batches: keyword arguments for the model, with ``attention_mask`` where there is padding, and
            ``decoder_attention_mask`` where there is in a decoder's own input; read once. A row must give in
            company what it gives alone: padding that moves positions, or that a head reads, is refused, and
            so are several texts packed into one row. No cache is filled. ``labels`` never
            reach the model; they only turn salience from the gradient of a random probe of the output into
            that of the task loss (and, in an encoder-decoder without a decoder input, make that input).
        unit: what is measured as one piece, as for :func:`~cahp_opt.torch.find_attention`.
        densities: of the random masks under which Gauss-Newton matrices are taken, each in (0, 1].
        fisher: whether empirical Fisher matrices are taken under the same masks too, which needs labels
            and costs one more backward pass per density (none at density 1).
        gradient_examples: gate gradients are taken for the first so many examples; 64 already give
            stable matrices, and each costs a forward and a backward pass per density.
        sensitivity_examples: moments weighted by the output's sensitivity to each token are taken for the
            first so many examples, with a forward and a backward pass for each; take as many as for a
            refit, because they choose what it fits.
        divergence_examples: attention maps are compared for the first so many examples.
        signature_size: cells along each side of the resized attention maps that are averaged by class,
            which needs class labels and takes ``16 * n * classes * signature_size ** 2`` bytes; 0 for
            none. The seed method takes 32.
        token_weights: of the same model, fidelity and seed; learns the weights of the batches whose
            sensitivity is taken, so that a refit on them need not take them again.
        fidelity: what to differentiate; None for what fits the model's head.
        seed: of the masks and probes.
        progress: called once per batch.

    Raises:
        UnsupportedModelError: if the model's attention is not understood.
        ValueError: for a bad argument, no batches, a batch that cannot be used, labels in some batches
            only or not there where signatures or Fisher matrices need them, head outputs or gradients that are NaN or
            infinite, or attention maps that the model does not hand out.
    """
    _check(
        densities,
        fisher,
        gradient_examples=gradient_examples,
        sensitivity_examples=sensitivity_examples,
        divergence_examples=divergence_examples,
        signature_size=signature_size,
    )
    if isinstance(model, _WRAPPERS):
        raise ValueError(
            f"`model` is a {type(model).__name__}, which runs its forward passes for training; pass the "
            "model inside it, `model.module`."
        )
    attention = find_attention(model, unit=unit)
    space = attention.space
    fidelity = fidelity_of(model) if fidelity is None else fidelity
    moments = MomentSums(model, attention)
    rhos = [float(rho) for rho in densities]
    gradients = GradientSums(model, attention, fidelity, rhos, seed, fisher=fisher)
    sensitivity = SensitivitySums(model, attention, fidelity, seed)
    divergence = DivergenceSums(model, attention)
    signatures = SignatureSums(model, attention, signature_size)
    seen = tokens = 0
    labelled: bool | None = None
    pooling: Pooling | None = None
    total = length(batches)
    with torch.inference_mode(False), evaluating(model):  # the caller may have inference mode on
        for done, batch in enumerate(prepared(batches, model), start=1):
            has_labels = labels_of(batch) is not None
            if labelled not in (None, has_labels):
                raise ValueError(
                    "`batches` has labels in some batches only; give all of them labels or none."
                )
            labelled = has_labels
            dense, together, pooling = _forward(model, attention, batch, fidelity, moments)
            if gradient_examples > seen:
                part = examples(batch, 0, gradient_examples - seen)
                gradients.add(part, dense[: batch_size(part)], together=together)
            if sensitivity_examples > seen:
                part = examples(batch, 0, sensitivity_examples - seen)
                found = sensitivity.add(part)
                if token_weights is not None and batch_size(part) == batch_size(batch):
                    token_weights.remember(found, done - 1)
            if divergence_examples > seen:
                divergence.add(examples(batch, 0, divergence_examples - seen))
            if signature_size:
                signatures.add(batch)
            seen += batch_size(batch)
            tokens += int(real_tokens(batch).sum())
            progress("calibrate", done, total)
    return HeadStats(
        space,
        fingerprint(model),
        seen,
        tokens,
        gradients.salience(),
        gradients.gauss_newton(),
        moments.result(),
        divergence.result() if divergence_examples else None,
        signatures.result() if signature_size else None,
        gradients.fisher(),
        sensitivity.result() if sensitivity_examples else (),
        pooling,
    )


def _forward(
    model: nn.Module,
    attention: Attention,
    batch: Batch,
    fidelity: Fidelity,
    moments: MomentSums,
) -> tuple[Tensor, bool, Pooling | None]:
    """The dense output of a batch, whether all activations have one row per example, and how it was pooled.

    The head outputs go into ``moments`` on the way.
    """
    rows: set[int] = set()

    def sink(block: int, outputs: Tensor) -> None:
        moments.add(block, outputs, batch)
        rows.add(len(outputs))

    with torch.no_grad(), capture_head_outputs(attention, sink):
        output = model(**inputs_of(batch))
        dense = fidelity.output(output, batch)
    return dense, rows <= {batch_size(batch)}, fidelity.pooling_of(output)


def _check(densities: Sequence[float], fisher: bool, **counts: int) -> None:
    for rho in densities:
        if not 0 < rho <= 1:
            raise ValueError(f"`densities` must lie in (0, 1], got {rho}.")
    if fisher and not densities:
        raise ValueError(
            "`fisher` takes its matrices under the masks of `densities`, which is empty; give it 1.0 for "
            "the unpruned model."
        )
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"`{name}` must be at least 0, got {value}.")
