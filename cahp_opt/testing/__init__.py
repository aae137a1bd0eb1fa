"""The laws that every solver and every objective obeys, to check your own against: NumPy only.

    from cahp_opt.testing import check_objective, check_solver

    check_solver(MySolver())
    check_objective(MyObjective(...), space)

Both raise :class:`BrokenLaw`, an ``AssertionError``, in any framework of tests or in none.
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
from cahp_opt.testing.objective_laws import check_objective
from cahp_opt.testing.solver_laws import SolverCheck, check_solver

__all__ = [
    "BUDGETS",
    "OBJECTIVES",
    "SPACES",
    "BrokenLaw",
    "BudgetMaker",
    "ObjectiveMaker",
    "SolverCheck",
    "check_objective",
    "check_solver",
    "make_problem",
]
