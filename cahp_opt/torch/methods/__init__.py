"""Methods that run the model to choose, one file each; add yours here."""

from cahp_opt.torch.methods.greedy_kl import GreedyKL
from cahp_opt.torch.methods.k_prune import KPrune
from cahp_opt.torch.methods.kwon import Kwon
from cahp_opt.torch.methods.learned_gates import LearnedGates
from cahp_opt.torch.methods.magnitude import Magnitude
from cahp_opt.torch.methods.staged import Staged

__all__ = [
    "GreedyKL",
    "KPrune",
    "Kwon",
    "LearnedGates",
    "Magnitude",
    "Staged",
]
