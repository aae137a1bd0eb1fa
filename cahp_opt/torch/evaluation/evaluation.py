"""How close a changed model is to the dense one on texts, as a few named figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor, nn

from cahp_opt.progress import Progress, silent
from cahp_opt.runs.media import Medium
from cahp_opt.stats.pooling import Pooling
from cahp_opt.studies.scores import Scores
from cahp_opt.torch.evaluation.fidelity import Fidelity, fidelity_of
from cahp_opt.torch.evaluation.scorers import Scorer
from cahp_opt.torch.running.batches import Batch, inputs_of, length
from cahp_opt.torch.running.main_input import medium_of
from cahp_opt.torch.running.preparing import prepared
from cahp_opt.torch.running.undisturbed import evaluating

FEW = 30
"""If there are fewer examples than this, a note says so."""
KEPT_BYTES = 2**30
"""A :class:`Judge` keeps this many bytes of the unpruned model's outputs, and computes the others again."""


@dataclass(frozen=True)
class Evaluation:
    """How a model did, and the unpruned one.

    Args:
        scores: numbers per example of the model.
        dense_scores: those of the unpruned model that depend on its own outputs alone; None without labels or
            texts that such numbers could be taken of.
        pooling: how hidden states became the embeddings that were compared; None for other outputs.
        notes: sentences on the limits of the figures for these texts.
    """

    scores: Scores
    dense_scores: Scores | None = None
    pooling: Pooling | None = None
    notes: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """Examples compared."""
        return self.scores.examples

    @cached_property
    def figures(self) -> Mapping[str, float]:
        """Figures by name, in the order a table shows them.

        :data:`~cahp_opt.studies.figures.FIGURES` has them by the kind of output. One that says how well a
        model does by itself has that of the unpruned model before it, such as ``dense_accuracy`` before
        ``accuracy``. Divergences are in nats, shares from 0 to 1.
        """
        found = dict[str, float]()
        for name, value in self.scores.values().items():
            if self.dense_scores is not None and self.scores.figures[name].of_one_model:
                found[f"dense_{name}"] = self.dense_scores.value(name)
            found[name] = value
        return MappingProxyType(found)


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
        batches: keyword arguments for the models; ``labels`` are used for accuracies only, and ``pair_scores``
            for the correlation with them.
        fidelity: how to compare outputs; None for the one that fits the dense model's head.
        progress: called once per batch.

    Raises:
        ValueError: without batches, for a batch that cannot be used, or for an output that the
            fidelity does not understand.
    """
    fidelity = fidelity_of(dense) if fidelity is None else fidelity
    scorer, total = fidelity.scorer(), length(batches)
    pooling: Pooling | None = None
    with torch.no_grad(), evaluating(dense, model):
        for done, batch in enumerate(prepared(batches, model), start=1):
            output = dense(**inputs_of(batch))
            pooling = fidelity.pooling_of(output)
            _add(scorer, fidelity, fidelity.output(output, batch), model, batch)
            progress("evaluate", done, total)
    scores = scorer.scores()
    return Evaluation(scores, scorer.dense_scores(), pooling, _notes(scorer, scores, dense))


def _notes(scorer: Scorer, scores: Scores, dense: nn.Module) -> tuple[str, ...]:
    """Sentences on the limits of the figures."""
    examples, what = scores.examples, (medium_of(dense) or Medium.TEXT).value
    few = (
        f"the figures compare {examples} {what if examples > 1 else what[:-1]} only, too few to tell apart "
        "models that differ a little."
    )
    return scorer.notes() if examples >= FEW else (few, *scorer.notes())


class Judge:
    """Judges any number of models on the same batches; the unpruned model runs on them once.

    Args:
        dense: the unpruned model; it is left as found.
        batches: as for :func:`evaluate`.
        fidelity: how to compare outputs; None for the one that fits the unpruned model's head.
        kept_bytes: keep this many bytes of its outputs. It runs again on batches whose outputs are not kept,
            which for language models are all but the first.
        progress: called once per batch.

    Raises:
        ValueError: as :func:`evaluate` does.
    """

    def __init__(
        self,
        dense: nn.Module,
        batches: Iterable[Batch],
        fidelity: Fidelity | None = None,
        *,
        kept_bytes: int = KEPT_BYTES,
        progress: Progress = silent,
    ) -> None:
        self._fidelity = fidelity_of(dense) if fidelity is None else fidelity
        self._dense, self._batches = dense, list(batches)
        self._kept = list[Tensor | None]()
        scorer = self._fidelity.scorer()
        with torch.no_grad(), evaluating(dense):
            for done, batch in enumerate(prepared(self._batches, dense), start=1):
                output = self._fidelity.output(dense(**inputs_of(batch)), batch)
                none = output.new_zeros(len(output))  # from itself, where rounding would find some
                scorer.add(output, output, none, batch)
                kept_bytes -= output.numel() * output.element_size()
                self._kept.append(output if kept_bytes >= 0 else None)
                progress("evaluate", done, len(self._batches))
        self.unpruned: Scores = scorer.scores()
        """The scores of the unpruned model itself."""
        self.notes = _notes(scorer, self.unpruned, dense)
        """Sentences on the limits of the figures for these batches."""

    def __call__(self, model: nn.Module, *, progress: Progress = silent) -> Scores:
        """The scores of a model, which is left as found.

        Args:
            model: the model.
            progress: called once per batch.

        Raises:
            ValueError: as :func:`evaluate` does.
        """
        fidelity, scorer = self._fidelity, self._fidelity.scorer()
        with torch.no_grad(), evaluating(self._dense, model):
            for place, batch in enumerate(prepared(self._batches, model)):
                reference = self._kept[place]
                if reference is None:
                    reference = fidelity.output(self._dense(**inputs_of(batch)), batch)
                _add(scorer, fidelity, reference, model, batch)
                progress("evaluate", place + 1, len(self._batches))
        return scorer.scores()


def _add(
    scorer: Scorer, fidelity: Fidelity, reference: Tensor, model: nn.Module, batch: Batch
) -> None:
    """Run a model on one batch, and score it beside the unpruned model's output."""
    other = fidelity.output(model(**inputs_of(batch)), batch).to(reference.device)
    scorer.add(reference, other, fidelity.distance(reference, other, batch), batch)
