"""``cahp prune``: the whole way at once."""

from __future__ import annotations

from pathlib import Path

import typer

from cahp_opt.cli.display import Display
from cahp_opt.cli.loading import embeds, idle_units, named_of
from cahp_opt.cli.notes import note
from cahp_opt.cli.options import (
    BatchSize,
    Data,
    Device,
    Dtype,
    Epochs,
    ExecutionOption,
    FeedForwardOption,
    Heads,
    HeldOut,
    KvCache,
    Latency,
    LatencyBatch,
    LearningRate,
    LeaveOut,
    Maximum,
    MaxLength,
    MaxTexts,
    Memory,
    Minimum,
    Model,
    MultipleOf,
    Objective,
    OutputDir,
    Overwrite,
    Parameters,
    PoolingOption,
    RecoveryOption,
    Repeats,
    Rounds,
    Seed,
    SequenceLength,
    SolverChoice,
    TableFile,
    Text,
    Threads,
    TimeLimit,
    UnitsOption,
    WeightingOption,
    WorkloadOption,
    given_on,
    goals_of,
    target_of,
    texts_of,
)
from cahp_opt.cli.outputs import check_folder, kept_runs, show
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Execution
from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload, workloads_for
from cahp_opt.runs.method import (
    Method,
    Units,
)
from cahp_opt.runs.plan import Applying, OutputOptions, Plan, Reading, RecoveryOptions
from cahp_opt.runs.recovery import Recovery, Weighting


def prune(
    context: typer.Context,
    model: Model,
    text: Text = None,
    data: Data = None,
    latency: Latency = None,
    parameters: Parameters = None,
    memory: Memory = None,
    kv_cache: KvCache = None,
    heads: Heads = None,
    minimum: Minimum = 1,
    maximum: Maximum = None,
    multiple_of: MultipleOf = 1,
    latency_table: TableFile = None,
    units: UnitsOption = Units.AUTO,
    objective: Objective = None,
    solver: SolverChoice = None,
    recovery: RecoveryOption = Recovery.REFIT,
    epochs: Epochs = 1,
    learning_rate: LearningRate = 5e-5,
    weighting: WeightingOption = Weighting.SENSITIVITY,
    feed_forward: FeedForwardOption = True,
    pooling: PoolingOption = None,
    output_dir: OutputDir = Path("pruned"),
    overwrite: Overwrite = False,
    max_texts: MaxTexts = 2000,
    held_out: HeldOut = 256,
    max_length: MaxLength = 128,
    batch_size: BatchSize = 32,
    workload: WorkloadOption = None,
    execution: ExecutionOption = Execution.EAGER,
    latency_batch_size: LatencyBatch = 8,
    sequence_length: SequenceLength = None,
    repeats: Repeats = 20,
    rounds: Rounds = 3,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    precision: Dtype = None,
    leave_out: LeaveOut = None,
) -> None:
    """Measure, select, slice, recover, check and save: the whole way at once.

    Without any limit, the budget is 0.8 of the unpruned end-to-end time. What is timed is
    --workload; without it, --latency-batch-size and --sequence-length for prefill and decode, as
    the goals name them; with --latency-table, what the table was measured with. After Ctrl-C the same
    command does not time again what was timed.
    """
    given = given_on(context)
    goals = goals_of(latency, parameters, memory, kv_cache)
    target = target_of(Target(goals, heads, minimum, maximum, multiple_of), "0.8")
    profile = Profile.load(latency_table) if latency_table else None
    timed = profile is not None and bool(profile.latency)
    note(given.check(table_times=timed))
    note(given.check(goals=target.goals, latency_goals=target.latencies))
    texts = texts_of(text, data, max_texts, held_out, seed)
    if profile is None or not timed:
        default = Workload(latency_batch_size, sequence_length, repeats, execution=execution)
        asked = [Workload.parse(w, repeats=repeats, execution=execution) for w in workload or ()]
        workloads = workloads_for(target.latencies, asked, default)
    else:
        ready = target.workloads(profile) or profile.latency
        workloads = tuple(
            Workload.of(name, table.provenance, repeats) for name, table in ready.items()
        )
    check_folder(output_dir, overwrite, model)
    display = Display()
    named = named_of(
        model, threads, device, precision, display, pooling=pooling, leave_out=leave_out
    )
    method = Method.suiting(recovery, objective, solver, time_limit, seed, embeds=embeds(named))
    note(given.check(solvers=(method.solver,)))
    note(idle_units(units, named.model))

    from cahp_opt.torch.pipeline.pruning_run import run_pipeline

    with kept_runs(output_dir.resolve(), () if profile else workloads) as samples:
        report = run_pipeline(
            named,
            texts,
            Plan(
                target,
                method,
                Applying(
                    RecoveryOptions(recovery, epochs, learning_rate, weighting, feed_forward),
                    workloads,
                    Reading(max_length, batch_size),
                    seed,
                ),
                rounds,
                units.unit,
            ),
            OutputOptions(output_dir, overwrite),
            profile=profile,
            samples=samples,
            stages=display,
        )
    show(report, output_dir)
