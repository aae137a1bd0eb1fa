"""The report and the selection as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cahp_opt.costs.budget import Budget
from cahp_opt.costs.checks import Check
from cahp_opt.costs.cost_table import CostTable
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Execution, Provenance
from cahp_opt.costs.quantities import QUANTITIES, amount, unit_of_measure
from cahp_opt.runs.media import Medium
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.report import FidelityReport, Report, verdict
from cahp_opt.selection import Selection, listed
from cahp_opt.studies.comparison import Comparison


def tables(report: Report, folder: str) -> RenderableType:
    """The final table for people.

    Args:
        report: the report to show.
        folder: where the files are.
    """
    parts: list[RenderableType] = [_kept(report.selection), _answer(report.selection)]
    parts.extend(_latency(n, found, report.where[n]) for n, found in report.latency.items())
    if report.goals:
        parts.append(_goals(report.goals))
    if report.selection.rounds:
        parts.append(_rounds(report.selection))
    if report.fidelity is not None:
        parts.append(_fidelity(report.fidelity, report.recovery, report.medium))
    parts.append(_result(report, folder))
    parts.extend(f"Note: {note}" for note in report.notes)
    return Group(*(_unwrapped(part) for part in parts))


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
    table.add_row("value", f"{selection.value:.6g}")
    known = math.isfinite(selection.bound)
    table.add_row("upper bound", f"{selection.bound:.6g}" if known else "none known")
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


def _latency(name: str, latency: Check, facts: Provenance) -> Table:
    where = f"{facts.batch} x {facts.sequence_length} tokens, {facts.dtype}, {facts.device}"
    if facts.threads:
        where += f", {facts.threads} thread{'s' if facts.threads > 1 else ''}"
    if facts.execution is not Execution.EAGER:
        where += f", {facts.execution.value}"
    unit = unit_of_measure(name) if " " in name else "s"
    table = _table(f"{'End-to-end latency of ' if unit == 's' else ''}{name} ({where})")
    for column in ("", "predicted", "measured", "error"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(
        "dense",
        amount(latency.dense_predicted, unit),
        amount(latency.dense_measured, unit),
        _percent(latency.dense_error),
    )
    table.add_row(
        "sliced",
        amount(latency.predicted, unit),
        amount(latency.measured, unit),
        _percent(latency.error),
    )
    table.add_row(
        "sliced / dense",
        _share(latency.predicted_ratio),
        _share(latency.ratio),
        _percent(latency.ratio_error),
    )
    table.add_row("speed-up", "", f"{latency.speed_up:.2f} x", "")
    table.add_row("spread of the machine", "", f"{100 * latency.spread:.1f} %", "")
    return table


def _goals(goals: Mapping[str, Check]) -> Table:
    what = "Latency goals" if all(unit_of_measure(name) == "s" for name in goals) else "Goals"
    table = _table(f"{what}, measured on the model that was saved")
    for column in ("goal", "limit", "predicted", "measured", "error", ""):
        table.add_column(column, justify="left" if column in ("goal", "") else "right")
    for name, check in goals.items():
        table.add_row(
            name,
            amount(check.limit, unit_of_measure(name)),
            amount(check.predicted, unit_of_measure(name)),
            amount(check.measured, unit_of_measure(name)),
            _percent(check.error),
            verdict(check),
        )
    return table


def _rounds(selection: Selection) -> Table:
    table = _table(
        "Rounds of selecting, slicing and measuring, in shares of their own unpruned time"
    )
    several = any(len(found.goals) > 1 for found in selection.rounds)
    attention_alone = bool(selection.space.of_attention.all())
    for name in ("round", "kept", *(["goal"] * several), "predicted", "measured", "limit"):
        table.add_column(name, justify="left" if name == "goal" else "right")
    table.add_column("error", justify="right")
    table.add_column("over", justify="right")
    table.add_column("")
    for number, found in enumerate(selection.rounds, start=1):
        totals = selection.space.totals(found.counts)
        kept = ", ".join(f"{total.kept} {total.what}" for total in totals)
        lead = [str(number), str(sum(found.counts)) if attention_alone else kept]
        remarks = ["fastest"] * found.fastest + ["chosen"] * (found == selection.measured)
        for name, check in found.goals.items():
            table.add_row(
                *lead,
                *([name] * several),
                _share(check.predicted_ratio),
                _share(check.ratio),
                _share(None if check.limit is None else check.limit / check.dense_measured),
                _percent(check.ratio_error),
                _percent(check.over),
                ", ".join(remarks),
            )
            lead, remarks = ["", ""], []
    return table


def _fidelity(fidelity: FidelityReport, recovery: Recovery, medium: Medium) -> Table:
    pooled = f", {fidelity.pooling} pooling" if fidelity.pooling else ""
    compared = f"{fidelity.examples} {medium.value} kept back{pooled}"
    table = _table(f"Fidelity to the dense model ({compared})")
    table.add_column("")
    table.add_column("sliced", justify="right")
    if fidelity.after is not None:
        table.add_column(f"after {recovery.value}", justify="right")
    for name, value in fidelity.before.items():
        row = [name.replace("_", " ").replace(" at ", "@"), f"{value:.4g}"]
        if fidelity.after is not None:
            row.append(f"{fidelity.after[name]:.4g}")
        table.add_row(*row)
    return table


def _result(report: Report, folder: str) -> Table:
    table = _facts("Result")
    table.add_row("model", report.model)
    before, after = report.parameters
    table.add_row("weights", f"{after:,} of {before:,} ({100 * after / before:.1f} %)")
    table.add_row("sliced against gated", f"outputs differ by at most {report.mask_difference:.2g}")
    table.add_row("loaded again", "outputs equal the sliced model's exactly")
    table.add_row("recovery", report.recovery.value)
    if report.calibration_texts:
        table.add_row(f"calibration {report.medium.value}", f"{report.calibration_texts:,}")
        if report.medium is Medium.TEXT:
            table.add_row("read, with held-out texts", report.counts.in_words())
    stages = ", ".join(f"{name} {taken:.1f}" for name, taken in report.seconds.items())
    table.add_row("seconds", f"{sum(report.seconds.values()):.1f} ({stages})")
    files = ", ".join(f"{name} ({_bytes(size)})" for name, size in report.files.items())
    table.add_row(f"written to {folder}", files)
    return table


def _table(title: str) -> Table:
    return Table(title=title, header_style="bold")


def _facts(title: str) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("")
    return table


def _share(x: float | None) -> str:
    return "" if x is None else f"{x:.3f}"


def _percent(x: float | None) -> str:
    return "" if x is None else f"{100 * x:+.1f} %"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
