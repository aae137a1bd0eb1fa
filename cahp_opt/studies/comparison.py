"""Any solvers on the same problems, in one table that can be trusted."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from cahp_opt.files.records import PathLike, RecordError, read_json, reading, write_json
from cahp_opt.problem import Problem
from cahp_opt.progress import Progress, silent
from cahp_opt.rounding import relative_gap, rounding_slack
from cahp_opt.selection import select
from cahp_opt.solver import Solver

_KIND, _VERSION = "cahp-comparison", 1
_LINE = '{"key": '  # how a finished run begins in a file of them


@dataclass(frozen=True)
class Row:
    """One run of one solver.

    Args:
        problem: name of the problem.
        solver: name of the solver.
        limit: limit of the problem's first table; NaN without a table.
        time_limit: seconds that the solver was given; infinite for no limit.
        seed: of the run.
        value: what it reached; NaN if it refused.
        bound: the certified upper bound; infinite if none is known.
        seconds: how long it took.
        evaluations: evaluations of the objective, if it counts them; otherwise -1.
        counts: units kept per block.
        status: name of the status.
        refusal: the sentence with which the solver or the check of its answer refused; otherwise
            empty.
    """

    problem: str
    solver: str
    limit: float
    time_limit: float
    seed: int
    value: float = math.nan
    bound: float = math.inf
    seconds: float = 0.0
    evaluations: int = -1
    counts: tuple[int, ...] = ()
    status: str = ""
    refusal: str = ""

    @property
    def gap(self) -> float:
        """``|bound - value| / max(|value|, 1e-12)``; infinite without a bound or a value."""
        return relative_gap(self.value, self.bound)

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become null."""
        body = asdict(self) | {"counts": list(self.counts)}
        return {
            name: None if isinstance(x, float) and not math.isfinite(x) else x
            for name, x in body.items()
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Row:
        """The inverse of :meth:`to_json`."""
        absent = {"limit": math.nan, "time_limit": math.inf, "value": math.nan, "bound": math.inf}
        body: dict[str, Any] = {
            f.name: absent[f.name] if data[f.name] is None else data[f.name] for f in fields(Row)
        }
        body["counts"] = tuple(data["counts"])
        return Row(**body)


@dataclass(frozen=True)
class Comparison:
    """Rows of runs; every solver saw the same problems, limits and seeds."""

    rows: tuple[Row, ...]

    def bound(self, problem: str) -> float:
        """The tightest bound that any run proved for a problem: it holds for all of them.

        A bound that another run's value refutes does not count.
        """
        wrong = self.refuted
        bounds = [row.bound for row in self.rows if row.problem == problem and row not in wrong]
        return min(bounds, default=math.inf)

    @property
    def refuted(self) -> tuple[Row, ...]:
        """Rows whose bound lies below the value of another row of the same problem: their solver, or
        a fact that the objective declares, is wrong."""
        best: dict[str, float] = {}
        for row in self.rows:
            if math.isfinite(row.value):
                best[row.problem] = max(row.value, best.get(row.problem, -math.inf))
        return tuple(
            row
            for row in self.rows
            if row.problem in best
            and row.bound < best[row.problem] - rounding_slack(best[row.problem], row.bound)
        )

    def gap(self, row: Row) -> float:
        """The gap of a row against the tightest bound of its problem; infinite where unknown."""
        return relative_gap(row.value, self.bound(row.problem))

    def save(self, path: PathLike) -> None:
        """Write the comparison as JSON."""
        write_json(path, _KIND, _VERSION, {"rows": [row.to_json() for row in self.rows]})

    @staticmethod
    def load(path: PathLike) -> Comparison:
        """Read a comparison.

        Raises:
            RecordError: if the file is not a usable comparison.
            OSError: if it cannot be read.
        """
        data = read_json(path, _KIND, _VERSION)
        with reading(path):
            return Comparison(tuple(Row.from_json(row) for row in data["rows"]))


def compare(
    problems: Problem | Mapping[str, Problem],
    solvers: Sequence[Solver] | Mapping[str, Solver],
    *,
    limits: Sequence[float] = (),
    time_limits: Sequence[float | None] = (None,),
    seeds: Sequence[int] = (0,),
    jobs: int = 1,
    resume: PathLike | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Run every solver on every problem, with the same limits and seeds.

    A solver that refuses a problem, or whose answer :func:`~cahp_opt.select` refuses, gets a row with
    the sentence. Runs go through joblib: ``with joblib.parallel_config(backend="dask")`` spreads them
    over a cluster.

    Args:
        problems: one problem, or several by name.
        solvers: solvers, named by their ``repr``, or a mapping with names of your own.
        limits: limits for the first table of every problem, one problem each; none for that of the
            budget.
        time_limits: seconds per run, each tried; None for no limit.
        seeds: each tried.
        jobs: runs at the same time; -1 for one per core.
        resume: a file of finished runs: those in it are not run again, and every finished run is
            added at once, so that nothing is lost when the comparison is interrupted.
        progress: called once per finished run.

    Raises:
        ValueError: without problems or solvers, for two solvers of one name, or if ``limits`` are given
            for a problem without a table.
        RecordError: if ``resume`` is not a file of runs.
    """
    import joblib  # takes a tenth of a second to import

    tools: Any = joblib  # it carries no annotations
    parallel = tools.Parallel(n_jobs=jobs, return_as="generator_unordered")
    later = tools.delayed(_run)
    named = {"problem": problems} if isinstance(problems, Problem) else dict(problems)
    candidates = _named_solvers(solvers)
    if not named or not candidates:
        raise ValueError("`problems` and `solvers` must each hold at least one.")
    runs: list[_Run] = []
    for name, problem in named.items():
        for label, varied in _varied(name, problem, limits):
            digest = str(tools.hash(_content(varied)))
            runs += [
                _Run(label, varied, solver_name, solver, time_limit, seed, digest)
                for solver_name, solver in candidates.items()
                for time_limit in time_limits
                for seed in seeds
            ]
    journal = None if resume is None else _Journal(Path(resume))
    done: dict[str, Row] = {} if journal is None else journal.read()
    missing = [run for run in runs if run.key not in done]
    finished = len(runs) - len(missing)
    progress("compare", finished, len(runs))
    results: Iterable[tuple[str, Row]] = parallel(later(run) for run in missing)
    for key, row in results:
        done[key] = row
        if journal is not None:
            journal.add(key, row)
        finished += 1
        progress("compare", finished, len(runs))
    return Comparison(tuple(done[run.key] for run in runs))


def is_journal(path: PathLike) -> bool:
    """Whether a file holds finished runs, as :func:`compare` writes them to ``resume``.

    Raises:
        OSError: if it cannot be read.
    """
    try:
        _Journal(Path(path)).read(mend=False)
        return True
    except (RecordError, UnicodeDecodeError):
        return False


@dataclass(frozen=True, eq=False)
class _Run:
    problem_name: str
    problem: Problem
    solver_name: str
    solver: Solver
    time_limit: float | None
    seed: int
    digest: str

    @property
    def key(self) -> str:
        """The key of a finished run: the problem's content and everything it ran with."""
        return json.dumps(
            [
                self.digest,
                self.problem_name,
                self.solver_name,
                repr(self.solver),
                self.time_limit,
                self.seed,
            ]
        )


def _run(run: _Run) -> tuple[str, Row]:
    tables = run.problem.budget.tables
    asked = Row(
        run.problem_name,
        run.solver_name,
        tables[0].limit if tables else math.nan,
        math.inf if run.time_limit is None else run.time_limit,
        run.seed,
    )
    try:
        selection = select(
            _fresh(run.problem), run.solver, time_limit=run.time_limit, seed=run.seed
        )
    except (ValueError, RuntimeError) as refusal:
        return run.key, replace(asked, refusal=str(refusal))
    return run.key, replace(
        asked,
        value=selection.value,
        bound=selection.bound,
        seconds=selection.seconds,
        evaluations=int(selection.stats.get("evaluations", -1)),
        counts=tuple(int(k) for k in selection.counts),
        status=selection.status.name,
    )


def _fresh(problem: Problem) -> Problem:
    """The problem without the caches of its objective, which later runs would get for free."""
    objective = copy.copy(problem.objective)
    for name in [name for name in vars(objective) if _is_cache(type(objective), name)]:
        del vars(objective)[name]
    return Problem(objective, problem.budget)


def _is_cache(kind: type[object], name: str) -> bool:
    return isinstance(inspect.getattr_static(kind, name, None), cached_property)


def _content(x: Any) -> Any:
    """The arguments of an object, without its caches: the same before and after use."""
    if isinstance(x, (tuple, list)):
        return [_content(item) for item in cast("Sequence[object]", x)]
    if isinstance(x, Mapping):
        return {str(k): _content(v) for k, v in cast("Mapping[object, object]", x).items()}
    if isinstance(x, Enum) or not hasattr(x, "__dict__"):
        return x
    kind = cast("type[object]", type(x))
    state = cast("dict[str, object]", vars(x))
    made = {name: _content(value) for name, value in state.items() if not _is_cache(kind, name)}
    return [f"{kind.__module__}.{kind.__qualname__}", made]


def _named_solvers(solvers: Sequence[Solver] | Mapping[str, Solver]) -> dict[str, Solver]:
    if isinstance(solvers, Mapping):
        return dict(solvers)
    named = {repr(solver): solver for solver in solvers}
    if len(named) != len(solvers):
        raise ValueError(
            "`solvers` has two solvers that print alike; give a mapping with names of your own."
        )
    return named


def _varied(name: str, problem: Problem, limits: Sequence[float]) -> list[tuple[str, Problem]]:
    if not len(limits):
        return [(name, problem)]
    budgets = [problem.budget.with_limit(limit) for limit in limits]
    return [
        (f"{name} at {limit:.6g}", Problem(problem.objective, budget))
        for limit, budget in zip(limits, budgets, strict=True)
    ]


class _Journal:
    """Finished runs, one JSON line each; a line that was cut off by an interruption is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, *, mend: bool = True) -> dict[str, Row]:
        """The finished runs by key; a line that was cut off is removed, unless ``mend`` is false."""
        if not self._path.exists():
            return {}
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        found: dict[str, Row] = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                found[entry["key"]] = Row.from_json(entry["row"])
            except (ValueError, KeyError, TypeError):
                raise self._refusal(number) from None
        cut = text[len(whole) :]
        if cut[: len(_LINE)] != _LINE[: len(cut)]:
            raise self._refusal(len(whole.splitlines()) + 1)
        if cut and mend:
            self._path.write_text(whole, encoding="utf-8")
        return found

    def _refusal(self, number: int) -> RecordError:
        return RecordError(
            f"line {number} of {self._path} is not a finished run; name another file for `resume`."
        )

    def add(self, key: str, row: Row) -> None:
        """Add one finished run."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": row.to_json()}) + "\n")
