"""What is done for a model once units are removed; what to keep depends on it."""

from __future__ import annotations

from enum import Enum


class Recovery(str, Enum):
    """How a sliced model gets back what it lost."""

    NONE = "none"
    """Not at all."""
    REFIT = "refit"
    """New weights in closed form for what writes to the residual stream (:func:`cahp_opt.torch.refit`)."""
    FINETUNE = "finetune"
    """The refit, then gradient steps towards the dense model (:func:`cahp_opt.torch.finetune`)."""

    @property
    def refits(self) -> bool:
        """Whether least squares come into it."""
        return self is not Recovery.NONE


class Weighting(str, Enum):
    """How much each token counts in a refit."""

    SENSITIVITY = "sensitivity"
    """By how strongly the model's output depends on what the block writes there, which takes gradients."""
    EQUAL = "equal"
    """All the same."""
