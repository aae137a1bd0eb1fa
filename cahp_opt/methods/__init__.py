"""Methods that choose from calibration statistics alone, one file each; add yours here."""

from cahp_opt.methods.cahp import Cahp
from cahp_opt.methods.default import Default
from cahp_opt.methods.even import Even
from cahp_opt.methods.explained_variance import MostExplained
from cahp_opt.methods.facility_location import Representatives
from cahp_opt.methods.fisher import Fisher
from cahp_opt.methods.gauss_newton import GaussNewton
from cahp_opt.methods.michel import Michel
from cahp_opt.methods.osscar import Osscar
from cahp_opt.methods.random import Random
from cahp_opt.methods.zip_levels import ZipLevels

__all__ = [
    "Cahp",
    "Default",
    "Even",
    "Fisher",
    "GaussNewton",
    "Michel",
    "MostExplained",
    "Osscar",
    "Random",
    "Representatives",
    "ZipLevels",
]
