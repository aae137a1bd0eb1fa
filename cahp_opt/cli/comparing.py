"""``cahp compare``: solvers on the same problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

from cahp_opt.cli.display import Display
from cahp_opt.cli.notes import note
from cahp_opt.cli.outputs import check_writable
from cahp_opt.cli.selecting import read_stats, tell_kinds
from cahp_opt.cli.tables import comparison_tables
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.budget import BudgetError
from cahp_opt.costs.goals import asked_latency
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.target import Target
from cahp_opt.files.belongings import some
from cahp_opt.files.records import is_record
from cahp_opt.problem import Problem
from cahp_opt.reports.page import REPORT_PAGE
from cahp_opt.runs.budget_options import BlockLimits, BudgetOptions
from cahp_opt.runs.names import ObjectiveName, SolverName
from cahp_opt.runs.options import option, same
from cahp_opt.runs.recovery import Recovery
from cahp_opt.solver import Solver
from cahp_opt.space import HeadSpace
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.studies.comparison import Comparison, is_journal

_RATIOS = ("0.9", "0.8", "0.7")


@dataclass(frozen=True)
class ComparedProblems:
    """The problems that are solved: one for every limit."""

    topic: ClassVar[str] = "Problems"

    stats: Path = field(
        metadata=option("--stats", metavar="FILE", help="Statistics of `cahp calibrate`.")
    )
    latency_table: Path | None = same(BudgetOptions, "latency_table")
    latency: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--latency",
            metavar="LIMIT",
            help="As in `cahp select`; each one is a separate problem.",
        ),
    )
    heads: tuple[int, ...] = field(
        default=(),
        metadata=option(
            "--heads",
            min=0,
            help="Maximum number of units (heads or key/value groups) kept in all attention blocks together. May be repeated; each one is a "
            "separate problem.",
        ),
    )
    blocks: BlockLimits = BlockLimits()
    objective: str | None = field(
        default=None,
        metadata=option(
            "--objective",
            help="An objective's name, or your own `module:Class`. Default: explained-output, or "
            "explained-variance for statistics without sensitivity (of models that embed texts).",
        ),
    )

    def targets(self, stats: HeadStats, profile: Profile | None) -> list[Target]:
        """A target for every limit; without any, limits that suit the records."""
        each = self.blocks
        ranges = Target(
            minimum=each.minimum,
            maximum=each.maximum,
            multiple_of=each.multiple_of,
            even=each.even,
        )
        latency, heads = self.latency, self.heads
        if not latency and not heads:
            if profile is not None and profile.latency:
                latency = _reachable(_RATIOS, ranges, stats, profile)
            else:
                return [replace(ranges, **limit) for limit in _fewer_units(ranges, stats.space)]
        by_time = [replace(ranges, goals=(asked_latency(text),)) for text in latency]
        return [*by_time, *(replace(ranges, heads=k) for k in heads)]

    def problems(self, stats: HeadStats, profile: Profile | None) -> dict[str, Problem]:
        """The problems by name, with notes about their limits."""
        from cahp_opt.cli.plugins import objective_named

        targets = self.targets(stats, profile)
        suits = ObjectiveName.suiting(Recovery.REFIT, embeds=not stats.sensitivity)
        goal = objective_named(self.objective or suits.value, stats)
        note(dict.fromkeys(remark for target in targets for remark in target.remarks(profile)))
        problems: dict[str, Problem] = {}
        for target in targets:
            name = f"latency {target.goals[0]}" if target.goals else _numbers(target)
            problems[name] = Problem(goal, target.budget(stats.space, profile, stats.model))
        note(dict.fromkeys(s for target in targets for s in target.loose(stats.space, profile)))
        return problems


@dataclass(frozen=True)
class ComparedSolvers:
    """The solvers, and how often and how long each runs."""

    topic: ClassVar[str] = "Solvers"

    solver: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--solver",
            help="A solver's name, or your own `module:Class`. May be repeated. Default: all.",
        ),
    )
    time_limit: float = field(
        default=10.0,
        metadata=option("--time-limit", metavar="SECONDS", help="Seconds that each run may take."),
    )
    seeds: int = field(default=1, metadata=option("--seeds", min=1, help="Runs of every solver."))
    jobs: int = field(
        default=1,
        metadata=option("--jobs", help="Runs at the same time; -1 for one per core."),
    )

    def __post_init__(self) -> None:
        if self.jobs < 1 and self.jobs != -1:
            raise ValueError(
                f"`--jobs` must be at least 1, or -1 for one per core, got {self.jobs}."
            )

    def names(self, n: int) -> list[str]:
        """The names of the solvers for a problem of ``n`` units."""
        every = [name.value for name in SolverName if name.value != "brute-force" or n <= 20]
        return list(self.solver) or every

    def run(
        self, problems: dict[str, Problem], solvers: dict[str, Solver], folder: Path
    ) -> Comparison:
        """Run everything that is missing in the folder."""
        from cahp_opt.studies import comparison

        with Display().stage("compare") as progress:
            return comparison.compare(
                problems,
                solvers,
                time_limits=(self.time_limit,),
                seeds=range(self.seeds),
                jobs=self.jobs,
                resume=folder / "runs.jsonl",
                progress=progress,
            )


@dataclass(frozen=True)
class ComparisonOutput:
    """Where a comparison goes."""

    topic: ClassVar[str] = "Output"

    output_dir: Path = field(
        default=Path("comparison"),
        metadata=option(
            "--output-dir",
            metavar="DIR",
            help="Folder to write; finished runs in it are not run again.",
        ),
    )


def compare(
    given: Given, asked: ComparedProblems, running: ComparedSolvers, output: ComparisonOutput
) -> None:
    """Run solvers on the same problems: one table of values, bounds, gaps and times, a page and two plots.

    Needs no PyTorch. With neither --latency nor --heads, the budgets are 0.9, 0.8 and 0.7 of the
    unpruned time, as far as they can be reached, or 3/4, 1/2 and 1/4 of the units of every kind without a
    latency table.
    """
    from cahp_opt.cli.plugins import solver_named
    from cahp_opt.reports.comparison_page import comparison_page
    from cahp_opt.studies.plotting import plot_gaps, plot_values, plots_missing

    note(given.check())
    stats = read_stats(asked.stats)
    tell_kinds(stats)
    profile = Profile.load(asked.latency_table) if asked.latency_table else None
    problems = asked.problems(stats, profile)
    names = running.names(stats.space.n)
    solvers = {name: solver_named(name) for name in names}
    known = {name.value: name for name in SolverName}
    note(given.check(solvers=[known.get(name, name) for name in names]))
    folder = output.output_dir
    _check_comparison(folder)
    unplotted = plots_missing()
    if unplotted is not None:  # the table is there without the pictures
        note([unplotted])
    found = running.run(problems, solvers, folder)
    found.save(folder / "comparison.json")
    Console().print(*comparison_tables(found))
    written = ["comparison.json", "runs.jsonl"]
    for name, plot in () if unplotted else (("gaps.png", plot_gaps), ("values.png", plot_values)):
        plot(found, folder / name)
        written.append(name)
    comparison_page(found).save(folder / REPORT_PAGE)
    print(f"written to {folder}: {', '.join([REPORT_PAGE, *written])}")


def _fewer_units(ranges: Target, space: HeadSpace) -> list[dict[str, Any]]:
    """Limits at 3/4, 1/2 and 1/4 of the units, as arguments of a target: of every kind that there is."""
    of_attention = np.array(space.of_attention)
    units = int(space.units[of_attention].sum())
    least = int(ranges.numbers(space).cheapest[of_attention].sum())
    neurons = not of_attention.all()
    return [
        {
            **({"heads": max(int(share * units), least)} if units else {}),
            **({"neurons": share} if neurons else {}),
        }
        for share in (0.75, 0.5, 0.25)
    ]


def _numbers(target: Target) -> str:
    """The limits on numbers of units."""
    heads = [] if target.heads is None else [f"{target.heads} units"]
    return " and ".join(
        [*heads, *([] if target.neurons is None else [f"neurons {target.neurons}"])]
    )


def _reachable(
    ratios: Sequence[str], ranges: Target, stats: HeadStats, profile: Profile
) -> tuple[str, ...]:
    """The default ratios that something keeps to, with a note about the others; all if nothing does."""
    found = list[str]()
    for ratio in ratios:
        try:
            replace(ranges, goals=(asked_latency(ratio),)).budget(stats.space, profile, stats.model)
        except BudgetError:
            continue
        found.append(ratio)
    below = [ratio for ratio in ratios if ratio not in found]
    if found and below:
        note([f"{' and '.join(below)} of the unpruned time cannot be reached, and is left out."])
    return tuple(found or ratios)


def _check_comparison(folder: Path) -> None:
    """Refuse a folder in which files of somebody else have the names of a comparison's."""
    if folder.is_file():
        raise ValueError(f"`--output-dir` {folder} is a file; name a folder.")
    runs, table = (folder / name for name in ("runs.jsonl", "comparison.json"))
    mine = {
        runs: runs.is_file() and is_journal(runs),
        table: table.is_file() and is_record(table, "cahp-comparison"),
        **{folder / name: runs.is_file() for name in ("gaps.png", "values.png", REPORT_PAGE)},
    }
    theirs = [path for path, ours in mine.items() if path.exists() and not ours]
    if theirs:
        raise ValueError(
            f"`--output-dir` {folder} holds {some([path.name for path in theirs])}, which no comparison "
            "wrote, so nothing in it is replaced; name another folder."
        )
    check_writable(runs)
