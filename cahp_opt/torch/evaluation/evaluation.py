"""How close a changed model is to the dense one on texts, as a few named figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from cahp_opt.progress import Progress, silent
from cahp_opt.runs.media import Medium
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.running.batches import Batch, batch_size, inputs_of, length
from cahp_opt.torch.running.main_input import medium_of
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.undisturbed import evaluating

FEW = 30
"""If there are fewer examples than this, a note says so."""


@dataclass(frozen=True)
class Evaluation:
    """Figures by name, in the order a table shows them.

    Classifiers: ``kl``, ``agreement`` and with labels ``dense_accuracy``, ``accuracy``. Encoders without a
    head: ``cosine_distance``, ``neighbour_agreement_at_10`` (of fewer neighbours where there are few texts, and
    not of all others, see :class:`~cahp_opt.torch.evaluation.figures.EmbeddingTally`). Causal language models:
    ``kl_per_token``, ``agreement``, ``dense_perplexity``, ``perplexity``. Divergences are in nats, shares
    from 0 to 1.

    Args:
        examples: examples compared.
        figures: the figures.
        pooling: how hidden states became the embeddings that were compared; None for other outputs.
        notes: sentences on the limits of the figures for these texts.
    """

    examples: int
    figures: Mapping[str, float]
    pooling: Pooling | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "figures", MappingProxyType(dict(self.figures)))


def evaluate(
    dense: nn.Module,
    model: nn.Module,
    batches: Iterable[Batch],
    fidelity: Fidelity | None = None,
    *,
    progress: Progress = silent,
) -> Evaluation:
    """Compare ``model`` with the ``dense`` model on texts; both are left as found.

    Args:
        dense: the reference.
        model: the changed model; the same model under :func:`~cahp_opt.torch.running.gates.head_mask` cannot
            be compared with itself, slice a copy for that.
        batches: keyword arguments for the models; ``labels`` are used for accuracies only.
        fidelity: how to compare outputs; None for the one that fits the dense model's head.
        progress: called once per batch.

    Raises:
        ValueError: without batches, for a batch that cannot be used, or for an output that the
            fidelity does not understand.
    """
    fidelity = fidelity_of(dense) if fidelity is None else fidelity
    tally, examples, total = fidelity.tally(), 0, length(batches)
    pooling: Pooling | None = None
    with torch.no_grad(), evaluating(dense, model):
        for done, batch in enumerate(prepared(batches, model), start=1):
            inputs = inputs_of(batch)
            output = dense(**inputs)
            pooling = fidelity.pooling_of(output)
            reference = fidelity.output(output, batch)
            other = fidelity.output(model(**inputs), batch).to(reference.device)
            tally.add(reference, other, fidelity.distance(reference, other, batch), batch)
            examples += batch_size(batch)
            progress("evaluate", done, total)
    what = (medium_of(dense) or Medium.TEXT).value
    few = (
        f"the figures compare {examples} {what if examples > 1 else what[:-1]} only, too few to tell apart "
        "models that differ a little."
    )
    notes = tally.notes() if examples >= FEW else (few, *tally.notes())
    return Evaluation(examples, tally.figures(), pooling, notes)
