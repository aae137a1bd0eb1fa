"""``cahp compare``: solvers on the same problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cahp_opt.cli.display import Display
from cahp_opt.cli.notes import note
from cahp_opt.cli.options import (
    Maximum,
    Minimum,
    MultipleOf,
    TableFile,
    given_on,
    jobs_of,
    stats_of,
)
from cahp_opt.cli.outputs import check_writable, some
from cahp_opt.cli.tables import comparison_tables
from cahp_opt.costs.budget import BudgetError
from cahp_opt.costs.goals import (
    asked_latency,
)
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.target import Target
from cahp_opt.files.records import is_record
from cahp_opt.problem import Problem
from cahp_opt.runs.method import (
    ObjectiveName,
    SolverName,
)
from cahp_opt.runs.recovery import Recovery
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.studies.comparison import is_journal


def compare(
    context: typer.Context,
    stats: Annotated[
        Path, typer.Option("--stats", metavar="FILE", help="Statistics of `cahp calibrate`.")
    ],
    latency_table: TableFile = None,
    latency: Annotated[
        list[str] | None,
        typer.Option(
            "--latency",
            metavar="[WORKLOADS=]RATIO|TIME",
            help="As in `cahp select`; each one is a problem of its own.",
        ),
    ] = None,
    heads: Annotated[
        list[int] | None,
        typer.Option("--heads", min=0, help="Units kept in all, at most; may be repeated."),
    ] = None,
    minimum: Minimum = 1,
    maximum: Maximum = None,
    multiple_of: MultipleOf = 1,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            help="An objective's name, or your own `module:Class`; if not given, explained-output, and "
            "explained-variance for statistics without sensitivity (of models that embed texts).",
        ),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(
            "--solver",
            help="A solver's name, or your own `module:Class`; may be repeated; all if not given.",
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds that each run may take.")
    ] = 10.0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of every solver.")] = 1,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", callback=jobs_of, help="Runs at the same time; -1 for one per core."
        ),
    ] = 1,
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir",
            metavar="DIR",
            help="Folder to write; finished runs in it are not run again.",
        ),
    ] = Path("comparison"),
) -> None:
    """Run solvers on the same problems: one table of values, bounds, gaps and times, and two plots.

    Needs no PyTorch. With neither --latency nor --heads, the budgets are 0.9, 0.8 and 0.7 of the
    unpruned time, as far as they can be reached, or 3/4, 1/2 and 1/4 of the units without a latency
    table.
    """
    from cahp_opt.cli.plugins import objective_named, solver_named
    from cahp_opt.studies import comparison
    from cahp_opt.studies.plotting import plot_gaps, plot_values, plots_missing

    given = given_on(context)
    measured = stats_of(stats)
    profile = Profile.load(latency_table) if latency_table else None
    n = measured.space.n
    ranges = Target(minimum=minimum, maximum=maximum, multiple_of=multiple_of)
    if not latency and not heads:
        if profile is not None and profile.latency:
            latency = _reachable(("0.9", "0.8", "0.7"), ranges, measured, profile)
        else:
            least = int(replace(ranges, heads=n).budget(measured.space, None).cheapest.sum())
            heads = [max(k, least) for k in (3 * n // 4, n // 2, n // 4)]
    targets = [replace(ranges, goals=(asked_latency(x),)) for x in latency or ()]
    targets += [replace(ranges, heads=k) for k in heads or ()]
    suits = ObjectiveName.suiting(Recovery.REFIT, embeds=not measured.sensitivity)
    goal = objective_named(objective or suits.value, measured)
    note(dict.fromkeys(remark for target in targets for remark in target.remarks(profile)))
    problems: dict[str, Problem] = {}
    for target in targets:
        name = f"latency {target.goals[0]}" if target.goals else f"{target.heads} units"
        problems[name] = Problem(goal, target.budget(measured.space, profile, measured.model))
    note(dict.fromkeys(s for target in targets for s in target.loose(measured.space, profile)))
    names = solver or [name.value for name in SolverName if name.value != "brute-force" or n <= 20]
    solvers = {name: solver_named(name) for name in names}
    known = {name.value: name for name in SolverName}
    note(given.check(solvers=[known.get(name, name) for name in names]))
    _check_comparison(output_dir)
    unplotted = plots_missing()
    if unplotted is not None:  # the table is there without the pictures
        note([unplotted])
    display = Display()
    with display.stage("compare") as progress:
        found = comparison.compare(
            problems,
            solvers,
            time_limits=(time_limit,),
            seeds=range(seeds),
            jobs=jobs,
            resume=output_dir / "runs.jsonl",
            progress=progress,
        )
    found.save(output_dir / "comparison.json")
    Console().print(*comparison_tables(found))
    written = ["comparison.json", "runs.jsonl"]
    for name, plot in () if unplotted else (("gaps.png", plot_gaps), ("values.png", plot_values)):
        plot(found, output_dir / name)
        written.append(name)
    print(f"written to {output_dir}: {', '.join(written)}")


def _reachable(
    ratios: Sequence[str], ranges: Target, measured: HeadStats, profile: Profile
) -> list[str]:
    """The default ratios that something keeps to, with a note about the others; all if nothing does."""
    found = list[str]()
    for ratio in ratios:
        try:
            replace(ranges, goals=(asked_latency(ratio),)).budget(
                measured.space, profile, measured.model
            )
        except BudgetError:
            continue
        found.append(ratio)
    below = [ratio for ratio in ratios if ratio not in found]
    if found and below:
        note([f"{' and '.join(below)} of the unpruned time cannot be reached, and is left out."])
    return found or list(ratios)


def _check_comparison(folder: Path) -> None:
    """Refuse a folder in which files of somebody else have the names of a comparison's."""
    if folder.is_file():
        raise ValueError(f"`--output-dir` {folder} is a file; name a folder.")
    runs, table = (folder / name for name in ("runs.jsonl", "comparison.json"))
    mine = {
        runs: runs.is_file() and is_journal(runs),
        table: table.is_file() and is_record(table, "cahp-comparison"),
        **{folder / name: runs.is_file() for name in ("gaps.png", "values.png")},
    }
    theirs = [path for path, ours in mine.items() if path.exists() and not ours]
    if theirs:
        raise ValueError(
            f"`--output-dir` {folder} holds {some([path.name for path in theirs])}, which no comparison "
            "wrote, so nothing in it is replaced; name another folder."
        )
    check_writable(runs)
