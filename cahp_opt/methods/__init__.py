"""Methods that choose from calibration statistics alone, one file each; add yours here."""

from cahp_opt.methods.default import Default
from cahp_opt.methods.michel import Michel
from cahp_opt.methods.random import Random

__all__ = [
    "Default",
    "Michel",
    "Random",
]
