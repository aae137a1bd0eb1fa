"""Set functions over keep-sets, to be maximised; each file names its source paper."""

from cahp_opt.objectives.coverage import FacilityLocation
from cahp_opt.objectives.explained_variance import ExplainedVariance
from cahp_opt.objectives.mixture import WeightedSum
from cahp_opt.objectives.modular import Modular
from cahp_opt.objectives.quadratic import Quadratic

__all__ = ["ExplainedVariance", "FacilityLocation", "Modular", "Quadratic", "WeightedSum"]
