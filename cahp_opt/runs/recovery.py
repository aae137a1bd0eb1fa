"""How a sliced model is repaired; the default objective depends on it."""

from __future__ import annotations

from enum import Enum


class Recovery(str, Enum):
    """How a sliced model is repaired."""

    NONE = "none"
    """No repair."""
    MASK_TUNING = "mask-tuning"
    """A factor for every unit that is left, in closed form (:func:`cahp_opt.torch.tune_masks`)."""
    REFIT = "refit"
    """Refitting in closed form the layers that write to the residual stream
    (:func:`cahp_opt.torch.refit`)."""
    FINETUNE = "finetune"
    """The refit, then gradient steps towards the dense model (:func:`cahp_opt.torch.finetune`)."""

    @property
    def refits(self) -> bool:
        """Whether it includes a refit."""
        return self in (Recovery.REFIT, Recovery.FINETUNE)

    @property
    def repairs(self) -> bool:
        """Whether it does anything, for which texts are needed."""
        return self is not Recovery.NONE


class Weighting(str, Enum):
    """The weights of tokens in a refit."""

    AUTO = "auto"
    """1 for every token of a model that embeds all of them, where that is faster and as close on texts like those that
    are fitted, and otherwise by the sensitivity."""
    SENSITIVITY = "sensitivity"
    """``E[g' g]`` with ``g`` the gradient of the model's output by the block's output at the
    token."""
    EQUAL = "equal"
    """1 for every token."""
