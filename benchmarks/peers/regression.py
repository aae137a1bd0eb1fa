"""Best subsets of groups of columns for least squares: explained variance here, and abess.

    python benchmarks/peers/regression.py "cahp_opt Greedy" INSTANCE.npz 6     # what run.py starts

Columns are the outputs of heads that share factors, the response is what a readout makes of all of them;
of the groups a given number stays. Variance explained is by least squares in double precision.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.timed import timed

SIZES = ((12, 32, 4), (48, 8, 12))
"""Groups, columns per group, and groups to keep."""
EXAMPLES, RESPONSES = 1_000, 64


class Regression(NamedTuple):
    """``responses = columns @ readout.T`` exactly; groups of neighbouring columns may be kept."""

    columns: Any
    readout: Any
    groups: Any

    def explained(self, kept: list[int]) -> float:
        """The share of the responses' variance that least squares on these groups explains."""
        width = self.columns.shape[1] // int(self.groups)
        chosen = (np.array(kept)[:, None] * width + np.arange(width)).ravel()
        responses = self.columns @ self.readout.T
        basis, _ = np.linalg.qr(self.columns[:, chosen])
        return float(np.sum((basis.T @ responses) ** 2) / np.sum(responses**2))


def instance(groups: int, width: int, seed: int = 0) -> Regression:
    """Heads of similar strength that share half as many factors as they have columns."""
    rng = np.random.default_rng(seed)
    d = groups * width
    factors = rng.normal(size=(EXAMPLES, d // 2))
    columns = factors @ rng.normal(size=(d // 2, d)) / np.sqrt(d // 2)
    columns += 0.2 * rng.normal(size=(EXAMPLES, d))
    columns *= np.repeat(np.sqrt(rng.pareto(8, groups) + 0.2), width)
    columns -= columns.mean(axis=0)
    return Regression(columns, rng.normal(size=(RESPONSES, d)) / np.sqrt(d), np.array(groups))


def ours(given: Regression, keep: int, name: str) -> tuple[list[int], dict[str, Any]]:
    """A solver of this library on the second moments, and the bound that the certificate states."""
    from cahp_opt import Budget, HeadSpace, Problem, select, solvers
    from cahp_opt.objectives import ExplainedVariance

    groups = int(given.groups)
    covariance = given.columns.T @ given.columns / len(given.columns)
    readout = given.readout.T @ given.readout
    objective = ExplainedVariance([covariance], [readout], [groups], ridge=1e-9)
    problem = Problem(objective, Budget.heads(HeadSpace.uniform(1, groups), keep))
    found = select(problem, getattr(solvers, name)())
    whole = float(np.sum(covariance * readout))
    extra = {"bound": found.bound / whole, "certificate": found.certificate}
    return np.flatnonzero(found.kept).tolist(), extra


def abess(given: Regression, keep: int, **options: Any) -> tuple[list[int], dict[str, Any]]:
    """abess on the same columns and responses; it is given the number of groups."""
    linear: Any = import_module("abess.linear")
    groups = int(given.groups)
    group = np.repeat(np.arange(groups), given.columns.shape[1] // groups)
    model = linear.MultiTaskRegression(
        support_size=keep, group=group, fit_intercept=False, **options
    )
    model.fit(given.columns, given.columns @ given.readout.T)
    return np.unique(group[np.any(model.coef_ != 0, axis=1)]).tolist(), {}


SOLVERS: Mapping[str, Callable[[Regression, int], tuple[list[int], dict[str, Any]]]] = {
    "cahp_opt Auto": lambda given, keep: ours(given, keep, "Auto"),
    "cahp_opt Greedy": lambda given, keep: ours(given, keep, "Greedy"),
    "abess": abess,
    "abess, thorough": lambda given, keep: abess(
        given, keep, max_iter=200, exchange_num=keep, splicing_type=1, important_search=0
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("solver", choices=list(SOLVERS))
    parser.add_argument("instance", type=Path)
    parser.add_argument("keep", type=int, help="groups to keep")
    arguments = parser.parse_args()
    with np.load(arguments.instance) as file:
        given = Regression(**file)
    kept, told = timed(lambda: SOLVERS[arguments.solver](given, arguments.keep))
    result = {
        "solver": arguments.solver,
        "value": given.explained(kept),
        "kept": len(kept),
        **told,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
