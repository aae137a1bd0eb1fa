"""Selections whose latency is verified on this machine, on really sliced models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from cahp_opt.costs.checks import Check
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Execution, Provenance
from cahp_opt.costs.quantities import workload_of
from cahp_opt.costs.target import Target
from cahp_opt.objective import Objective
from cahp_opt.progress import Progress, silent
from cahp_opt.selection import Selection, chooser
from cahp_opt.solver import Solver
from cahp_opt.space import Unit
from cahp_opt.studies.promise import ForeignTableWarning, Measure, Promise, foreign
from cahp_opt.torch.blocks.finder import Prunable, blocks_of
from cahp_opt.torch.blocks.fingerprint import structure
from cahp_opt.torch.latency.meters import meter_of
from cahp_opt.torch.latency.model_times import device_name, provenance, time_models
from cahp_opt.torch.running.batches import Batch, device_of, prepare
from cahp_opt.torch.slicing.timing_copies import timing_copy

__all__ = ["ForeignTableWarning", "here", "measuring", "select_measured", "time_pairs"]


def select_measured(
    model: nn.Module | Prunable,
    objective: Objective,
    profile: Profile,
    target: Target,
    batches: Mapping[str, Batch],
    solver: Solver,
    *,
    rounds: int = 3,
    tolerance: float = 0.01,
    repeats: int = 20,
    time_limit: float | None = None,
    seed: int = 0,
    unit: Unit | None = None,
    progress: Progress = silent,
) -> Selection:
    """Select units, slice, measure, and select again with corrected tables, until the limits are
    kept.

    In every round the unpruned and the sliced model are timed alternately, on every workload of a
    latency goal, in the phase and execution of its table. A ratio is relative to the unpruned time
    of the same round. :meth:`~cahp_opt.studies.promise.Promise.keep` describes the rounds.

    Args:
        model: the unpruned model, on the device and in the precision that it will run in, or its blocks; it
            is not changed.
        objective: the objective to maximise.
        profile: the latency tables to begin with, and the resources of other goals; of both kinds of blocks
            it serves where one is pruned.
        target: the goals and limits, with at least one latency goal.
        batches: by name of the workload, keyword arguments for the model, as for
            :func:`~cahp_opt.torch.measure_latency`.
        solver: the solver.
        rounds: the largest number of sliced models to time.
        tolerance: relative excess over a limit that still meets it.
        repeats: timed runs of each model per round; as many again, up to three times in all, while the noise of
            their mean is as large as the miss.
        time_limit: seconds that the solver may take per round; None for no limit.
        seed: of the solver.
        unit: as for :func:`~cahp_opt.torch.find_attention`.
        progress: called once per round of timing.

    Returns:
        The most valuable selection that met its limits or, if none did, the one least over them;
        its ``rounds`` show which. Its costs are those of the tables that it was chosen with.

    Warns:
        ForeignTableWarning: if a table was measured on another machine, or with other work.

    Raises:
        BudgetError: if nothing meets the target, as measured.
        ValueError: for a bad argument, a batch that is missing, or a profile of another model.
    """
    promise = Promise(rounds=rounds, tolerance=tolerance, repeats=repeats)
    prunable = blocks_of(model, unit)
    model = prunable.model
    profile.check(structure(model))
    profile = profile.restricted(prunable.space)
    tables = target.measured(profile)
    there = {name: table.provenance for name, table in tables.items()}
    for sentence in foreign(there, here(model, there, batches)):
        warnings.warn(sentence, ForeignTableWarning, stacklevel=2)
    measure = measuring(prunable, there, batches, progress=progress)
    device = device_name(device_of(model))
    choose = chooser(objective, solver, time_limit=time_limit, seed=seed)
    return promise.keep(choose, profile, target, measure, device=device)


def here(
    model: nn.Module, tables: Mapping[str, Provenance], batches: Mapping[str, Batch]
) -> dict[str, Provenance]:
    """Where and how every workload is timed here: as for its table, as far as this device can.

    Args:
        model: the model.
        tables: by name of the workload, where and how its table was measured.
        batches: by name of the workload.

    Raises:
        ValueError: for a batch that is missing or cannot be used.
    """
    missing = [workload_of(name) for name in tables if workload_of(name) not in batches]
    if missing:
        raise ValueError(
            f"`batches` lacks the workload {missing[0]!r} of the target, and has "
            f"{list(batches)}; name its batch too."
        )
    device, found = device_of(model), dict[str, Provenance]()
    for name, there in tables.items():
        execution = there.execution
        if execution is Execution.CUDA_GRAPH and device.type != "cuda":
            execution = Execution.EAGER
        workload = workload_of(name)
        batch = prepare(batches[workload], model, f"batches[{workload!r}]")
        facts = provenance(model, batch, there.phase, execution)
        found[name] = facts if device.type == "cpu" else replace(facts, threads=0)
    return found


def measuring(
    prunable: Prunable,
    tables: Mapping[str, Provenance],
    batches: Mapping[str, Batch],
    *,
    progress: Progress = silent,
) -> Measure:
    """A function that times the model against itself, sliced to a selection, on every workload.

    Args:
        prunable: the blocks of the unpruned model.
        tables: by name of the workload, where and how its table was measured.
        batches: by name of the workload.
        progress: called once per round of timing.

    Raises:
        ValueError: for a batch that is missing or cannot be used.
    """
    model = prunable.model
    facts = here(model, tables, batches)
    workloads = {workload_of(name) for name in facts}
    ready = {name: prepare(batches[name], model, f"batches[{name!r}]") for name in workloads}

    def measure(selection: Selection, repeats: int) -> dict[str, Check]:
        small = timing_copy(prunable, selection.kept)
        return time_pairs(model, small, facts, ready, repeats=repeats, progress=progress)

    return measure


def time_pairs(
    model: nn.Module,
    small: nn.Module,
    facts: Mapping[str, Provenance],
    batches: Mapping[str, Batch],
    *,
    repeats: int = 20,
    progress: Progress = silent,
) -> dict[str, Check]:
    """Time the unpruned and a sliced model alternately on every workload.

    Args:
        model: the unpruned model.
        small: the sliced one.
        facts: by name of the workload, its phase and its way to run.
        batches: by name of the workload.
        repeats: timed runs of each model and workload.
        progress: called once per round.
    """
    pairs = dict[str, Check]()
    for name, fact in facts.items():
        times = time_models(
            {"unpruned": model, "sliced": small},
            batches[workload_of(name)],
            phase=fact.phase,
            execution=fact.execution,
            repeats=repeats,
            progress=progress,
            meter=meter_of(name, device_of(model)),
        )
        spread = max(timing.spread for timing in times.values())
        pairs[name] = Check(
            measured=times["sliced"].seconds,
            dense_measured=times["unpruned"].seconds,
            spread=spread,
        )
    return pairs
