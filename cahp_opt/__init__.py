"""Attention-head selection in transformers as combinatorial optimisation."""

from cahp_opt.budget import Budget, BudgetError
from cahp_opt.comparison import Comparison, compare
from cahp_opt.count_table import CountTable
from cahp_opt.frontiers import Frontier, frontier, knee
from cahp_opt.goals import LatencyGoal, ResourceGoal
from cahp_opt.hardware import Hardware
from cahp_opt.heads import Block, HeadSpace, Unit
from cahp_opt.latency import Execution, LatencyTable, Phase, Provenance
from cahp_opt.problem import Objective, Problem
from cahp_opt.profile import Profile, ResourceTable
from cahp_opt.records import RecordError
from cahp_opt.recovery import Recovery
from cahp_opt.rounds import Check, Round
from cahp_opt.selection import Proposal, Selection, Solver, Status, select
from cahp_opt.sensitivity import Sensitivity
from cahp_opt.signatures import Signatures
from cahp_opt.stats import HeadStats, Moments, Total
from cahp_opt.target import Target

__version__ = "0.1.0"

__all__ = [
    "Block",
    "Budget",
    "BudgetError",
    "Check",
    "Comparison",
    "CountTable",
    "Execution",
    "Frontier",
    "Hardware",
    "HeadSpace",
    "HeadStats",
    "LatencyGoal",
    "LatencyTable",
    "Moments",
    "Objective",
    "Phase",
    "Problem",
    "Profile",
    "Proposal",
    "Provenance",
    "RecordError",
    "Recovery",
    "ResourceGoal",
    "ResourceTable",
    "Round",
    "Selection",
    "Sensitivity",
    "Signatures",
    "Solver",
    "Status",
    "Target",
    "Total",
    "Unit",
    "__version__",
    "compare",
    "frontier",
    "knee",
    "select",
]
