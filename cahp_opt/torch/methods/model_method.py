"""Methods that look at the model itself, and not at calibration statistics alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cahp_opt.progress import Progress, silent
from cahp_opt.runs.method import Method, Task
from cahp_opt.selection import Chooser
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.evaluation.fidelity import Fidelity


@dataclass(frozen=True, eq=False)
class Evidence:
    """What such a method may look at.

    Args:
        prunable: the blocks of the unpruned model, in the units of ``stats``; the model stays as it is.
        stats: what calibration measured.
        task: what is asked for.
        batches: the calibration texts, tensors ``[batch, tokens]``, with labels where there are some.
        fidelity: how outputs are compared.
        progress: called while the work goes on.
    """

    prunable: Prunable
    stats: HeadStats
    task: Task
    batches: Sequence[Mapping[str, Tensor]]
    fidelity: Fidelity
    progress: Progress = silent


class ModelMethod(Method):
    """A method that runs the model; everything else as for :class:`~cahp_opt.runs.method.Method`."""

    @abstractmethod
    def chooser_on(self, evidence: Evidence) -> Chooser:
        """The function that chooses within a budget.

        It is called again, with another budget over the same units, where the time of a sliced model misses its limit.
        The selection may be over a space whose blocks have another order of their neurons.

        Args:
            evidence: the model and what was measured on it.

        Raises:
            ValueError: if the method cannot be used on it.
        """

    def rehearse(self, prunable: Prunable, batch: Mapping[str, Tensor]) -> None:
        """Refuse, before anything is measured, a model that the method cannot run as it has to; by itself none.

        Args:
            prunable: the blocks of the unpruned model.
            batch: one of the calibration texts, tensors ``[batch, tokens]``.

        Raises:
            ValueError: naming the way out.
        """
        del prunable, batch

    def chooser(self, stats: HeadStats, task: Task) -> Chooser:
        """Refuses: statistics are not enough.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"`--method {self.name}` runs the model, and statistics alone do not hold it; use `cahp prune`, or "
            "another method."
        )


def rehearse_choice(method: Method, prunable: Prunable, batch: Mapping[str, Tensor]) -> None:
    """:meth:`ModelMethod.rehearse` of any method; those of statistics refuse no model.

    Args:
        method: the method.
        prunable: the blocks of the model.
        batch: of tensors ``[batch, tokens]``.
    """
    if isinstance(method, ModelMethod):
        method.rehearse(prunable, batch)


def chooser_of(method: Method, evidence: Evidence) -> Chooser:
    """The function of any method that chooses within a budget."""
    if isinstance(method, ModelMethod):
        return method.chooser_on(evidence)
    return method.chooser(evidence.stats, evidence.task)
