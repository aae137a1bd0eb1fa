"""What a solver answers to a problem, and what the best answer is."""

from __future__ import annotations

from cahp_opt.problem import Problem
from cahp_opt.selection import Selection, select
from cahp_opt.solver import Solver
from cahp_opt.solvers.brute_force import BruteForce
from cahp_opt.testing.broken_law import BrokenLaw

CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-9}
"""How far values may lie apart that are the same but for rounding."""


def best_value(problem: Problem) -> float:
    """The value of the best of all keep-sets within the budget, found by trying them."""
    return select(problem, BruteForce()).value


def answer(solver: Solver, problem: Problem, seed: int = 0) -> Selection | None:
    """The solver's selection, or None where it refuses the structure with a sentence."""
    name = type(solver).__name__
    try:
        return select(problem, solver, seed=seed)
    except ImportError:
        raise  # a package that is not installed says nothing about the solver
    except ValueError as refusal:
        if name in str(refusal) and str(refusal).endswith("."):
            return None
        raise BrokenLaw(
            f"`{name}` must refuse a problem with a sentence that names it and ends with a full stop, "
            f"got {str(refusal)!r}."
        ) from refusal
    except RuntimeError as referee:
        raise BrokenLaw(str(referee)) from referee
    except Exception as error:
        raise BrokenLaw(f"`{name}` must answer or refuse, got {error!r}.") from error
