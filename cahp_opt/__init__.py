"""Attention-head selection in transformers as combinatorial optimisation."""

from cahp_opt.costs.budget import Budget, BudgetError
from cahp_opt.costs.checks import Check, Round
from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.count_table import Cost, CountTable
from cahp_opt.costs.goals import LatencyGoal, ResourceGoal
from cahp_opt.costs.hardware import Hardware
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.profile import Profile, ResourceTable
from cahp_opt.costs.provenance import Execution, Phase, Provenance
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.target import Target
from cahp_opt.files.records import RecordError
from cahp_opt.knees import knee
from cahp_opt.objective import Objective
from cahp_opt.problem import Problem
from cahp_opt.runs.method import Method, Needs, Task
from cahp_opt.runs.recovery import Recovery
from cahp_opt.selection import Chooser, Selection, chooser, select
from cahp_opt.solver import Proposal, Solver, Status
from cahp_opt.space import Block, HeadSpace, Unit
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.moments import Moments
from cahp_opt.stats.sensitivity import Sensitivity
from cahp_opt.stats.signatures import Signatures
from cahp_opt.stats.totals import Total
from cahp_opt.studies.comparison import Comparison, compare
from cahp_opt.studies.frontiers import Frontier, frontier
from cahp_opt.studies.outcome import Arm, Cell, Outcome
from cahp_opt.studies.scores import Scores
from cahp_opt.studies.study import Study
from cahp_opt.version import __version__

__all__ = [
    "Arm",
    "Block",
    "Budget",
    "BudgetError",
    "Cell",
    "Check",
    "Chooser",
    "Comparison",
    "Cost",
    "CostTable",
    "CountTable",
    "Execution",
    "Frontier",
    "Hardware",
    "HeadSpace",
    "HeadStats",
    "LatencyGoal",
    "LatencyTable",
    "Method",
    "Moments",
    "Needs",
    "Objective",
    "Outcome",
    "Phase",
    "Problem",
    "Profile",
    "Proposal",
    "Provenance",
    "Prune",
    "RecordError",
    "Recovery",
    "ResourceGoal",
    "ResourceTable",
    "Round",
    "Scores",
    "Selection",
    "Sensitivity",
    "Signatures",
    "Solver",
    "Status",
    "Study",
    "Target",
    "Task",
    "Total",
    "Unit",
    "__version__",
    "chooser",
    "compare",
    "frontier",
    "knee",
    "select",
]
