"""The page of one pruning: what was kept, what it takes, how good it is, and where that comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath

from cahp_opt.costs.checks import Check
from cahp_opt.costs.provenance import Execution, Provenance
from cahp_opt.costs.quantities import QUANTITIES, amount, unit_of_measure
from cahp_opt.reports.kept_units import kept_tables
from cahp_opt.reports.page import Code, Entry, Page, Part, Prose, Table, Tile, sections_with
from cahp_opt.reports.wording import (
    certificate_in_words,
    figure_meaning,
    gap_in_words,
    kept_in_words,
    number,
    objective_meaning,
    paired_figures,
    percent,
    share_of_whole,
    value_in_words,
)
from cahp_opt.runs.media import Medium
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.report import Report, verdict
from cahp_opt.selection import Selection


def pruning_page(report: Report) -> Page:
    """The page of a report."""
    return Page(
        f"Pruned: {short_name(report.model)}",
        " ".join(verdict_sentences(report)),
        tuple(_tiles(report)),
        sections_with(
            ("What was kept", kept_tables(report.selection)),
            ("Quality", _quality(report)),
            ("Time", _times(report)),
            ("The choice and its certificate", _choice(report.selection)),
            ("Notes", _notes(report)),
            ("Where the numbers come from", _sources(report)),
        ),
    )


def short_name(model: str) -> str:
    """A model's name without the folders before it; of the hub with its owner."""
    path = PurePath(model)
    return path.name if path.is_absolute() or len(path.parts) > 2 else model


def verdict_sentences(report: Report) -> list[str]:
    """What was kept, what it takes, and how good it is: a sentence each."""
    told = [f"It keeps {kept_in_words(report.selection)}."]
    if report.goals:
        told += [_kept_promise(name, check) for name, check in report.goals.items()]
    else:
        told += [
            f"It takes {check.ratio:.3f} of the unpruned {_what(name)}."
            for name, check in report.latency.items()
        ]
    told.append(_closeness(report))
    return told


def _kept_promise(name: str, check: Check) -> str:
    limit = (
        ""
        if check.limit is None
        else f", and {check.limit / check.dense_measured:.3f} were promised"
    )
    how = f" ({verdict(check)})" if check.limit is not None else ""
    return f"It takes {check.ratio:.3f} of the unpruned {_what(name)}{limit}{how}."


def _what(name: str) -> str:
    """What a check is about: the time or another cost, and of which workload."""
    if name in ("latency", "prefill"):
        return "time"
    return f"time of {name}" if _unit(name) == "s" else name


def _closeness(report: Report) -> str:
    fidelity = report.fidelity
    if fidelity is None:
        return "How good it is was not measured, because no texts were kept back."
    now = fidelity.before if fidelity.after is None else fidelity.after
    name, dense, value = _headline(now)
    meaning = figure_meaning(name)
    told = f"Its {meaning.name} is {number(value)}"
    if dense is not None:
        told += f", the unpruned model's {number(dense)}"
    if fidelity.after is not None:
        told += f" ({number(fidelity.before[name])} before the {_repair(report.recovery)})"
    return f"{told}, on {fidelity.examples:,} {report.medium.value} that nothing was fitted on."


def _headline(figures: Mapping[str, float]) -> tuple[str, float | None, float]:
    """The figure that people ask for: that of the task, if there is one, or the distance."""
    pairs = paired_figures(figures)
    return next((pair for pair in pairs if pair[1] is not None), pairs[0])


def _repair(recovery: Recovery) -> str:
    return "refit" if recovery is Recovery.REFIT else f"{recovery.value} recovery"


def _tiles(report: Report) -> Iterator[Tile]:
    selection = report.selection
    for total in selection.space.totals(selection.counts):
        yield Tile(
            f"{total.what} kept",
            f"{total.kept:,}",
            f"of {total.of:,}, {percent(total.kept / total.of)}",
        )
    for name, check in (report.goals or report.latency).items():
        told = verdict(check) or "of the unpruned"
        yield Tile(f"{_what(name)}, share of unpruned", f"{check.ratio:.3f}", told)
    if report.fidelity is not None:
        now = report.fidelity.after or report.fidelity.before
        name, dense, value = _headline(now)
        told = "0 means like the unpruned" if dense is None else f"unpruned {number(dense)}"
        if dense is None and figure_meaning(name).higher_is_better:
            told = "1 means like the unpruned"
        yield Tile(figure_meaning(name).name, number(value), told)
    before, after = report.parameters
    yield Tile("weights", percent(after / before), f"{after:,} of {before:,}")


# -- quality ---------------------------------------------------------------------------------------


def _quality(report: Report) -> Iterator[Part]:
    fidelity = report.fidelity
    if fidelity is None:
        yield Prose(
            (
                "The model was not compared with the unpruned one, because there were no texts to compare "
                "them on; give some with --text or --data.",
            )
        )
        return
    pooled = f", as embeddings by {fidelity.pooling} pooling" if fidelity.pooling else ""
    header = ["figure", "unpruned", "sliced"]
    if fidelity.after is not None:
        header.append(f"after {report.recovery.value}")
    after = fidelity.after or {}
    rows = list[tuple[Entry | str, ...]]()
    for name, dense, value in paired_figures(fidelity.before):
        meaning = figure_meaning(name)
        name_of = Entry(meaning.name, told=meaning.sentence)
        row: list[Entry | str] = [name_of, number(dense), number(value)]
        if fidelity.after is not None:
            row.append(Entry(number(after.get(name)), strong=True))
        rows.append(tuple(row))
    yield Table(
        f"Compared with the unpruned model on {fidelity.examples:,} {report.medium.value} that nothing was "
        f"fitted on{pooled}",
        tuple(header),
        tuple(rows),
    )


# -- times -----------------------------------------------------------------------------------------


def _times(report: Report) -> Iterator[Part]:
    for name, check in report.latency.items():
        yield _workload(name, check, report.where[name])
    if report.goals:
        yield _goals(report.goals)
    if report.selection.rounds:
        yield from _rounds(report.selection)


def _workload(name: str, check: Check, where: Provenance) -> Table:
    unit = _unit(name)
    full = max(filter(None, (check.measured, check.dense_measured)))
    rows = (
        (
            "unpruned",
            amount(check.dense_predicted, unit) or "-",
            amount(check.dense_measured, unit),
            Entry("1", bar=check.dense_measured / full),
            percent(check.dense_error, sign=True),
        ),
        (
            "pruned",
            amount(check.predicted, unit) or "-",
            Entry(amount(check.measured, unit), strong=True),
            Entry(f"{check.ratio:.3f}", bar=check.measured / full),
            percent(check.error, sign=True),
        ),
        (
            "pruned / unpruned",
            _ratio(check.predicted_ratio),
            f"{check.ratio:.3f}",
            "",
            percent(check.ratio_error, sign=True),
        ),
    )
    return Table(
        f"{name} ({where_in_words(where)})",
        ("", "predicted", "measured", "measured share", "off the prediction"),
        rows,
        words=frozenset({3}),
        below=(
            f"Both models were timed in turns. The pruned one is {check.speed_up:.2f} times as fast; the noise of "
            f"the machine was {percent(check.spread)}.",
        )
        if unit == "s"
        else (f"Both models were measured in turns; the noise was {percent(check.spread)}.",),
    )


def where_in_words(where: Provenance) -> str:
    """Where and how something was measured, as a clause."""
    told = [f"{where.batch} x {where.sequence_length} tokens", where.dtype, where.device]
    if where.threads:
        told.append(f"{where.threads} thread{'s' if where.threads > 1 else ''}")
    if where.execution is not Execution.EAGER:
        told.append(where.execution.value)
    if where.estimated:
        told.append("an estimate, not measured")
    return ", ".join(filter(None, told))


def _goals(goals: Mapping[str, Check]) -> Table:
    rows = list[tuple[Entry | str, ...]]()
    for name, check in goals.items():
        unit = _unit(name)
        good = (check.over or 0.0) <= 0.01
        rows.append(
            (
                name,
                amount(check.limit, unit) or "-",
                amount(check.predicted, unit) or "-",
                amount(check.measured, unit),
                percent(check.error, sign=True),
                Entry(verdict(check), tone="good" if good else "bad"),
            )
        )
    return Table(
        "What was promised, measured on the model that was saved",
        ("goal", "limit", "predicted", "measured", "off the prediction", "kept?"),
        tuple(rows),
        words=frozenset({5}),
    )


def _rounds(selection: Selection) -> Iterator[Part]:
    names = list(dict.fromkeys(name for found in selection.rounds for name in found.goals))
    checks = [check for found in selection.rounds for check in found.goals.values()]
    shares = [check.ratio for check in checks]
    shares += [check.limit / check.dense_measured for check in checks if check.limit is not None]
    full = max([1.0, *shares])
    rows = list[tuple[Entry | str, ...]]()
    for turn, found in enumerate(selection.rounds, start=1):
        totals = selection.space.totals(found.counts)
        lead = [str(turn), ", ".join(f"{total.kept:,} {total.what}" for total in totals)]
        remarks = ["fastest that the other limits allow"] * found.fastest
        remarks += ["chosen"] * (found == selection.measured)
        for name, check in found.goals.items():
            limit = None if check.limit is None else check.limit / check.dense_measured
            bar = Entry(
                f"{check.ratio:.3f}", check.ratio / full, None if limit is None else limit / full
            )
            rows.append(
                (
                    *lead,
                    *([name] * (len(names) > 1)),
                    _ratio(check.predicted_ratio),
                    bar,
                    _ratio(limit),
                    percent(check.over, sign=True),
                    ", ".join(remarks),
                )
            )
            lead, remarks = ["", ""], []
    header = ["round", "kept", *(["goal"] * (len(names) > 1))]
    numbers = len(header)
    header += ["predicted", "measured", "limit", "over the limit", ""]
    yield Table(
        "Rounds of choosing, slicing and measuring, in shares of the unpruned model's own cost in that round; the "
        "line across a bar is the limit",
        tuple(header),
        tuple(rows),
        words=frozenset({*range(1, numbers), numbers + 1, numbers + 4}),
    )


def _ratio(x: float | None) -> str:
    return "-" if x is None else f"{x:.3f}"


def _unit(name: str) -> str:
    """The unit of measure of a check: seconds, unless the name is of another resource."""
    return unit_of_measure(name) or "s"


# -- the choice ------------------------------------------------------------------------------------


def _choice(selection: Selection) -> Iterator[Part]:
    yield Prose(tuple(certificate_in_words(selection)))
    meaning, facts = objective_meaning(selection), selection.provenance
    rows = list[tuple[Entry | str, ...]]()
    for name in ("method", "objective", "solver"):
        if name in facts:
            rows.append((name, facts[name]))
    for name, value in (("value", selection.value), ("upper bound", selection.bound)):
        share = selection.of_whole(value)
        told = f"{share_of_whole(share)} of the unpruned model's {meaning.name}"
        rows.append((name, Entry(number(value, 6), told="" if share != share else told)))
    rows.append(("gap", Entry(_gap(selection), told=gap_in_words(selection))))
    rows.append(("status", selection.status.value))
    for name, cost in selection.costs.items():
        measured = cost.unit in QUANTITIES and not QUANTITIES[cost.unit].counted
        unit = cost.unit if measured else ""
        rows.append(
            (
                f"predicted {name}" if measured else name,
                f"{amount(cost.value, unit)} of at most {amount(cost.limit, cost.unit)}",
            )
        )
    yield Table(
        f"{value_in_words(selection)}. {meaning.sentence}",
        ("", ""),
        tuple(rows),
        words=frozenset({1}),
    )


def _gap(selection: Selection) -> str:
    return percent(selection.gap, 6) if selection.gap < float("inf") else "unknown"


def _notes(report: Report) -> Iterator[Part]:
    if report.notes:
        yield Prose(report.notes, listed=True)


# -- provenance ------------------------------------------------------------------------------------


def _sources(report: Report) -> Iterator[Part]:
    if report.command:
        yield Code(report.command)
    rows = list[tuple[Entry | str, ...]]()
    rows.append(("model", report.model))
    rows.append(("seed", str(report.seed)))
    if report.calibration_texts:
        rows.append((f"calibration {report.medium.value}", f"{report.calibration_texts:,}"))
        if report.medium is Medium.TEXT:
            rows.append(("read, with those kept back", report.counts.in_words()))
    rows.append(("recovery", report.recovery.value))
    rows.append(("sliced against gated", f"outputs differ by at most {report.mask_difference:.2g}"))
    rows.append(("loaded again", "outputs equal the sliced model's exactly"))
    for name, where in report.where.items():
        rows.append((f"device of {name}", where_in_words(where)))
    versions = {k: v for where in report.where.values() for k, v in where.versions.items()}
    facts = dict(report.selection.provenance)
    versions |= {"cahp-opt": facts.pop("cahp-opt")} if "cahp-opt" in facts else {}
    if versions:
        rows.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    identity = facts.pop("model", "")
    if identity:
        rows.append(("blocks and weights", identity))
    rows += [
        (name, told)
        for name, told in facts.items()
        if name not in ("objective", "solver", "method")
    ]
    rows += [(name, told) for name, told in report.selection.basis.in_words() if name != "remarks"]
    if report.seconds:
        stages = ", ".join(f"{name} {taken:.1f}" for name, taken in report.seconds.items())
        rows.append(("seconds", f"{sum(report.seconds.values()):.1f} ({stages})"))
    yield Table("How this was made", ("", ""), tuple(rows), words=frozenset({1}))
    if report.files:
        files = tuple((name, f"{size:,}") for name, size in sorted(report.files.items()))
        yield Table("Files in the folder, in bytes", ("file", "bytes"), files, folded=True)
