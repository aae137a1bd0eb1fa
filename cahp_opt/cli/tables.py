"""Selections, profiles and comparisons as tables for the terminal."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cahp_opt.costs.budget import Budget
from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.quantities import QUANTITIES, amount
from cahp_opt.reports.wording import objective_meaning, share_of_whole
from cahp_opt.selection import Selection, listed
from cahp_opt.studies.comparison import Comparison


def selection_tables(selection: Selection) -> RenderableType:
    """The kept units and their value, as tables."""
    return Group(_unwrapped(_kept(selection)), _unwrapped(_answer(selection)))


def profile_lines(profile: Profile) -> list[str]:
    """For every table of a profile, what the unpruned model costs and what pruning can reach."""
    found: dict[str, CostTable] = {f"latency of {n}": t for n, t in profile.latency.items()}
    found |= profile.resources
    lines = list[str]()
    for name, table in found.items():
        budget = Budget(profile.space, (table.within(table.dense, name),), minimum=1)
        floor, where = budget.floors()[name], table.provenance
        share = f" ({floor / table.dense:.3f} of it)" if table.dense else ""
        line = (
            f"{name}: unpruned {amount(table.dense, table.unit)}, with one unit per block or more "
            f"at least {amount(floor, table.unit)}{share}"
        )
        if where.estimated:
            line += f", an {where.device or 'estimate'}, not measured"
        elif table.measured or name not in profile.resources:
            line += f", {where.execution.value} on {where.device or 'an unknown device'}"
        lines.append(line)
    return lines


def comparison_tables(comparison: Comparison) -> list[RenderableType]:
    """For every problem its solvers, best value first, with what refused at the end."""
    return [
        _unwrapped(_compared(comparison, problem))
        for problem in dict.fromkeys(row.problem for row in comparison.rows)
    ]


def _compared(comparison: Comparison, problem: str) -> Table:
    bound = comparison.bound(problem)
    table = _table(f"{problem} (tightest bound {bound:.6g})")
    for name in ("solver", "value", "gap", "own bound", "seconds", "evals", "per block"):
        table.add_column(name, justify="left" if name in ("solver", "per block") else "right")
    rows = [row for row in comparison.rows if row.problem == problem]
    refusals: dict[str, None] = {}
    for row in sorted(rows, key=lambda row: (bool(row.refusal), -row.value)):
        name = row.solver if row.seed == 0 else f"{row.solver}, seed {row.seed}"
        if row.refusal:
            table.add_row(name, "refused")
            refusals[row.refusal] = None
            continue
        gap = comparison.gap(row)
        table.add_row(
            name,
            f"{row.value:.6g}",
            f"{100 * gap:.3g} %" if math.isfinite(gap) else "unknown",
            f"{row.bound:.6g}" if math.isfinite(row.bound) else "none",
            f"{row.seconds:.3g}",
            str(row.evaluations) if row.evaluations >= 0 else "",
            "/".join(str(k) for k in row.counts),
        )
    for row in comparison.refuted:
        if row.problem == problem:
            refusals[
                f"The bound {row.bound:.6g} of {row.solver} is wrong: another run reached more. It does "
                "not count."
            ] = None
    table.caption = "\n".join(refusals) or None
    return table


def _unwrapped(part: RenderableType) -> RenderableType:
    """A table with its title and caption as lines of their own, which its width does not break."""
    if not isinstance(part, Table):
        return part
    lines: list[RenderableType] = [Text(str(part.title), style="bold"), part]
    if part.caption is not None:
        lines.append(Text(str(part.caption)))
    part.title = part.caption = None
    return Group("", *lines)


def _kept(selection: Selection) -> Table:
    table = _table("Kept")
    table.add_column("block")
    table.add_column("kept", justify="right")
    table.add_column("of", justify="right")
    table.add_column("ids")
    space, portions = selection.space, selection.space.portions(selection.counts)
    for block, part, ids in zip(space.blocks, portions, selection.heads().values(), strict=True):
        what = f"{part.of} {part.what}"
        table.add_row(block.name, str(part.kept), what, listed(part, ids))
    table.add_section()
    if space.of_attention.all():
        table.add_row("all", str(int(selection.kept.sum())), str(space.n), "")
        return table
    for total in space.totals(selection.counts):
        table.add_row("all", str(total.kept), f"{total.of} {total.what}", "")
    return table


def _answer(selection: Selection) -> Table:
    table = _facts("Selection")
    for name in ("objective", "solver"):
        if name in selection.provenance:
            table.add_row(name, selection.provenance[name])
    table.add_row(objective_meaning(selection).name, _of_whole(selection, selection.value))
    known = math.isfinite(selection.bound)
    table.add_row("upper bound", _of_whole(selection, selection.bound) if known else "none known")
    table.add_row("gap", f"{100 * selection.gap:.3g} %" if known else "unknown")
    table.add_row("status", selection.status.value)
    if selection.certificate:
        table.add_row("certificate", selection.certificate)
    for name, cost in selection.costs.items():
        (value, limit), unit = cost, cost.unit
        if unit in QUANTITIES and not QUANTITIES[unit].counted:
            table.add_row(f"predicted {name}", f"{amount(value, unit)} of {amount(limit, unit)}")
        else:
            table.add_row(name, f"{amount(value, '')} of at most {amount(limit, unit)}")
    return table


def _of_whole(selection: Selection, value: float) -> str:
    """A value of the objective, as a share of the unpruned model's where that is known."""
    share = selection.of_whole(value)
    told = "" if math.isnan(share) else f", {share_of_whole(share)} of the unpruned model's"
    return f"{value:.6g}{told}"


def _table(title: str) -> Table:
    return Table(title=title, header_style="bold")


def _facts(title: str) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("")
    return table
