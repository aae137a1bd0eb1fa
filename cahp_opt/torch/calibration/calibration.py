"""One pass over texts that measures the statistics of the heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cahp_opt.progress import Progress, silent
from cahp_opt.runs.measuring import ANYWAY, DECIDED, Measuring, MeasuringOptions
from cahp_opt.space import Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling
from cahp_opt.stats.statistic import Statistic
from cahp_opt.torch.blocks.finder import Prunable, blocks_of
from cahp_opt.torch.blocks.fingerprint import fingerprint
from cahp_opt.torch.calibration.collector import Collecting, Collector, Dense, PassReader, Subject
from cahp_opt.torch.calibration.collectors import collectors_for
from cahp_opt.torch.calibration.token_flows import differentiated
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
    model: nn.Module | Prunable,
    batches: Iterable[Batch],
    *,
    unit: Unit | None = None,
    densities: Sequence[float] = (1.0, 0.5),
    fisher: bool = False,
    gradient_examples: int = 256,
    sensitivity_examples: int = 0,
    divergence_examples: int = 0,
    signature_size: int = 0,
    token_weights: PassReader | None = None,
    collectors: Iterable[Collector] = (),
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

    Memory does not grow with the data: batches are read one by one and none is kept. The model may be
    spread over devices or offloaded. Half-precision models run in half precision, but sums are double.
    For several processes see :func:`~cahp_opt.torch.gather_stats`.

    Args:
        model: a model whose attention :func:`~cahp_opt.torch.blocks.finder.find_attention` understands, or its
            blocks if they were found already, such as blocks of both kinds by
            :func:`~cahp_opt.torch.find_prunable`.
        batches: keyword arguments for the model, with ``attention_mask`` if there is padding, and
            ``decoder_attention_mask`` if a decoder's own input is padded; read once. A row must
            give the same in the batch as alone: padding that moves positions, or that a head reads, is
            refused, and so are several texts packed into one row. No cache is filled. ``labels`` never
            reach the model; they only turn salience from the gradient of a random probe of the output into
            that of the task loss (and, in an encoder-decoder without a decoder input, make that input).
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        densities: of the random masks under which Gauss-Newton matrices are taken, each in (0, 1].
        fisher: whether empirical Fisher matrices are taken under the same masks too, which needs labels
            and costs one more backward pass per density (none at density 1).
        gradient_examples: the number of examples, from the start, that gate gradients are computed
            for; 64 already give stable matrices, and each costs a forward and a backward pass per
            density.
        sensitivity_examples: the number of examples, from the start, for moments weighted by the
            output's sensitivity to each token, with a forward and a backward pass for each; take as
            many as for a refit.
        divergence_examples: the number of examples, from the start, whose attention maps are
            compared.
        signature_size: cells along each side of the resized attention maps that are averaged by class,
            which needs class labels and takes ``16 * n * classes * signature_size ** 2`` bytes; 0 for
            none. The seed method takes 32.
        token_weights: a :class:`~cahp_opt.torch.TokenWeights` of the same model, fidelity and seed; receives the
            weights of all batches, from the gradients of the sensitivity where that is measured, and what a refit
            on them needs of the unpruned model, so that it runs no further pass.
        collectors: of further statistics, such as your own
            (:class:`~cahp_opt.torch.calibration.collector.Collector`).
        fidelity: the distance to differentiate; None for the one that fits the model's head.
        seed: of the masks and probes.
        progress: called once per batch.

    Raises:
        UnsupportedModelError: if the model's attention is not understood.
        ValueError: for a bad argument, no batches, a batch that cannot be used, labels in some batches
            only, or missing for signatures or Fisher matrices, head outputs or gradients that are
            NaN or infinite, or attention maps that the model does not return.
    """
    amounts = MeasuringOptions(
        gradient_examples, sensitivity_examples, divergence_examples, signature_size
    )
    statistics = ANYWAY.union(*DECIDED.values()) - ({"fisher"} if not fisher else set())
    measuring = Measuring(statistics, amounts, tuple(densities))
    return measure(
        blocks_of(model, unit),
        batches,
        [*collectors_for(measuring), *collectors],
        token_weights=token_weights,
        fidelity=fidelity,
        seed=seed,
        progress=progress,
    )


def measure(
    prunable: Prunable,
    batches: Iterable[Batch],
    collectors: Iterable[Collector],
    *,
    token_weights: PassReader | None = None,
    fidelity: Fidelity | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> HeadStats:
    """The statistics of the heads of a model from some collectors; all statistics are measured
    here.

    Args:
        prunable: the blocks of the model; everything else as for :func:`calibrate`, but
        collectors: of the statistics to measure, such as those from
            :func:`~cahp_opt.torch.calibration.collectors.collectors_for`.

    Raises:
        ValueError: as :func:`calibrate` does, or if two collectors give one statistic.
    """
    model = prunable.model
    if isinstance(model, _WRAPPERS):
        raise ValueError(
            f"`model` is a {type(model).__name__}, which runs its forward passes for training; pass the "
            "model inside it, `model.module`."
        )
    fidelity = fidelity_of(model) if fidelity is None else fidelity
    subject = Subject(prunable, fidelity, seed)
    running = [(collector.examples, collector.start(subject)) for collector in collectors]
    seen = tokens = 0
    labelled: bool | None = None
    pooling: Pooling | None = None
    total = length(batches)
    with torch.inference_mode(False), evaluating(model):  # the caller may have inference mode on
        for number, batch in enumerate(prepared(batches, model)):
            has_labels = labels_of(batch) is not None
            if labelled not in (None, has_labels):
                raise ValueError(
                    "`batches` has labels in some batches only; give all of them labels or none."
                )
            labelled = has_labels
            size = batch_size(batch)
            shares = [size if most is None else min(size, most - seen) for most, _ in running]
            reader = token_weights if token_weights and token_weights.wants(number) else None
            differentiate = (reader is not None and reader.differentiates) or any(
                left == size and sums.differentiates
                for left, (_, sums) in zip(shares, running, strict=True)
            )
            with nullcontext() if reader is None else reader.watching(batch, number):
                dense, pooling = _forward(
                    subject, batch, [sums for _, sums in running], differentiate
                )
            if reader is not None and reader.differentiates and dense.flows is not None:
                reader.remember(dense.flows, number)
            for left, (_, sums) in zip(shares, running, strict=True):
                if left == size:
                    sums.add(batch, dense)
                elif left > 0:
                    sums.add(examples(batch, 0, left), Dense(dense.output[:left], dense.together))
            seen += size
            tokens += int(real_tokens(batch).sum())
            progress("calibrate", number + 1, total)
    return HeadStats(
        prunable.space,
        fingerprint(model),
        seen,
        tokens,
        pooling=pooling,
        statistics=_together(sums.result() for _, sums in running),
    )


def _forward(
    subject: Subject, batch: Batch, running: Sequence[Collecting], differentiate: bool
) -> tuple[Dense, Pooling | None]:
    """The dense output of a batch, with gradients where asked, and how it was pooled.

    The collectors see the head outputs meanwhile.
    """
    rows: set[int] = set()

    def sink(block: int, outputs: Tensor) -> None:
        for sums in running:
            sums.see(block, outputs.detach(), batch)
        rows.add(len(outputs))

    with torch.no_grad(), capture_head_outputs(subject.prunable, sink):
        if differentiate:
            output, pooling, found = differentiated(
                subject.prunable, batch, subject.fidelity, subject.seed
            )
        else:
            returned = subject.prunable.model(**inputs_of(batch))
            output, pooling = (
                subject.fidelity.output(returned, batch),
                subject.fidelity.pooling_of(returned),
            )
            found = None
    return Dense(output, rows <= {batch_size(batch)}, found), pooling


def _together(results: Iterable[Mapping[str, Statistic]]) -> dict[str, Statistic]:
    found: dict[str, Statistic] = {}
    for result in results:
        for name, statistic in result.items():
            if name in found:
                raise ValueError(f"two `collectors` give the statistic `{name}`; leave out one.")
            found[name] = statistic
    return found
