"""The laws that every solver, objective and method obeys, to check your own against: NumPy only.

    from cahp_opt.testing import check_method, check_objective, check_solver

    check_solver(MySolver())
    check_objective(MyObjective(...), space)
    check_method(MyMethod())

All raise :class:`BrokenLaw`, an ``AssertionError``, in any framework of tests or in none.
"""

from cahp_opt.testing.broken_law import BrokenLaw
from cahp_opt.testing.instances import (
    BUDGETS,
    OBJECTIVES,
    SPACES,
    BudgetMaker,
    ObjectiveMaker,
    make_problem,
)
from cahp_opt.testing.method_laws import MethodCheck, check_method
from cahp_opt.testing.method_trials import TRIALS, MethodTrial, RandomTrial
from cahp_opt.testing.objective_laws import check_objective
from cahp_opt.testing.solver_laws import SolverCheck, check_solver
from cahp_opt.testing.statistics import random_stats

__all__ = [
    "BUDGETS",
    "OBJECTIVES",
    "SPACES",
    "TRIALS",
    "BrokenLaw",
    "BudgetMaker",
    "MethodCheck",
    "MethodTrial",
    "ObjectiveMaker",
    "RandomTrial",
    "SolverCheck",
    "check_method",
    "check_objective",
    "check_solver",
    "make_problem",
    "random_stats",
]
