"""Set functions over keep-sets, to be maximised; each file names its source paper."""

from cahp_opt.objective import WeightedSum
from cahp_opt.objectives.complementarity import Complementarity
from cahp_opt.objectives.curvature import Curvature
from cahp_opt.objectives.explained_variance import ExplainedVariance
from cahp_opt.objectives.facility_location import FacilityLocation
from cahp_opt.objectives.feature_based import Concave, FeatureBased
from cahp_opt.objectives.graph_cut import GraphCut
from cahp_opt.objectives.log_det import LogDet
from cahp_opt.objectives.modular import Modular
from cahp_opt.objectives.quadratic import Quadratic
from cahp_opt.objectives.saturated_coverage import SaturatedCoverage
from cahp_opt.objectives.sparse_facility_location import SparseFacilityLocation

__all__ = [
    "Complementarity",
    "Concave",
    "Curvature",
    "ExplainedVariance",
    "FacilityLocation",
    "FeatureBased",
    "GraphCut",
    "LogDet",
    "Modular",
    "Quadratic",
    "SaturatedCoverage",
    "SparseFacilityLocation",
    "WeightedSum",
]
