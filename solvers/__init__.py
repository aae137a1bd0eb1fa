"""Ways to choose the units to keep; one file each."""

from cahp_opt.solvers.auto import Auto
from cahp_opt.solvers.backward_greedy import BackwardGreedy
from cahp_opt.solvers.best_of import BestOf
from cahp_opt.solvers.branch_and_bound import BranchAndBound
from cahp_opt.solvers.brute_force import BruteForce
from cahp_opt.solvers.cahp import CAHP
from cahp_opt.solvers.dynamic_program import DynamicProgram
from cahp_opt.solvers.greedy import Greedy
from cahp_opt.solvers.lazy_greedy import LazyGreedy
from cahp_opt.solvers.local_search import LocalSearch
from cahp_opt.solvers.miqp import MIQP
from cahp_opt.solvers.random_subset import RandomSubset
from cahp_opt.solvers.relaxation import Relaxation
from cahp_opt.solvers.row_prices import RowPrices
from cahp_opt.solvers.spectral import Spectral
from cahp_opt.solvers.stochastic_greedy import StochasticGreedy
from cahp_opt.solvers.tabu import Tabu
from cahp_opt.solvers.top_k import TopK

__all__ = [
    "CAHP",
    "MIQP",
    "Auto",
    "BackwardGreedy",
    "BestOf",
    "BranchAndBound",
    "BruteForce",
    "DynamicProgram",
    "Greedy",
    "LazyGreedy",
    "LocalSearch",
    "RandomSubset",
    "Relaxation",
    "RowPrices",
    "Spectral",
    "StochasticGreedy",
    "Tabu",
    "TopK",
]
