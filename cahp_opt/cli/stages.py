"""The command line: ``cahp prune`` and its stages. PyTorch is loaded only by commands that run a model."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import cahp_opt
from cahp_opt.cli.display import Display
from cahp_opt.cli.errors import explain
from cahp_opt.cli.option_words import as_options
from cahp_opt.cli.stopping import stopping_in_order
from cahp_opt.cli.streams import never_failing_streams
from cahp_opt.cli.tables import comparison_tables, profile_lines, selection_tables, tables
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.budget import BudgetError
from cahp_opt.costs.goals import (
    KV_CACHE,
    MEMORY,
    PARAMETERS,
    Goal,
    LatencyGoal,
    ResourceGoal,
    asked_latency,
)
from cahp_opt.costs.hardware import Hardware
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Execution
from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload, recorded_workloads, workloads_for
from cahp_opt.files.belongings import Belongings
from cahp_opt.files.records import RecordError, is_record
from cahp_opt.identity import coverage_note
from cahp_opt.problem import Problem
from cahp_opt.runs.method import (
    Method,
    ObjectiveName,
    Precision,
    SolverName,
    Units,
)
from cahp_opt.runs.plan import Applying, Reading
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.runs.report import Report
from cahp_opt.runs.texts import LineTexts, TableTexts, TextSplit, split
from cahp_opt.selection import Selection
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling, recorded_pooling
from cahp_opt.studies.comparison import is_journal

if TYPE_CHECKING:
    from torch import nn

    from cahp_opt.torch.pipeline.run import Named

app = typer.Typer(
    name="cahp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Choose which attention heads a transformer keeps, under a latency budget measured on this "
    "machine, and make the model really smaller.",
)

# -- options, each written once --------------------------------------------------------------------

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of a model.")]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option(
        "--leave-out",
        metavar="MODULE",
        help="Module of the checkpoint that the model's class does not take and that may be lost, such as "
        "cls.seq_relationship of a BERT for masked words; without it such checkpoints are refused. May be "
        "repeated.",
    ),
]
Text = Annotated[
    Path | None, typer.Option("--text", metavar="FILE", help="Texts, one per line (UTF-8).")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="TSV",
        help="Texts as tab-separated values with a header: text, and maybe text_pair and label; "
        "quoted as csv and pandas do, or not at all.",
    ),
]
Latency = Annotated[
    list[str] | None,
    typer.Option(
        "--latency",
        metavar="[WORKLOADS=]RATIO|TIME",
        help="Largest end-to-end time: a ratio of the unpruned time such as 0.8, or a time such as "
        "12.5ms or 0.0125s; of one workload as in decode=12ms, or of several runs as in "
        "prefill+200*decode=0.8. May be repeated: all must hold.",
    ),
]
Parameters = Annotated[
    str | None,
    typer.Option(
        "--parameters",
        metavar="RATIO|NUMBER",
        help="Weights of the whole model, at most: a ratio of the unpruned model such as 0.9, or a number "
        "such as 7.5M or 1.2B (billion).",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="RATIO|BYTES",
        help="Bytes of the weights, at most: a ratio such as 0.9, or bytes such as 512MB or 1.5GiB.",
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        "--kv-cache",
        metavar="RATIO|BYTES",
        help="Bytes of the key/value cache of the workload that decodes, at most; as --memory.",
    ),
]
Heads = Annotated[
    int | None,
    typer.Option("--heads", min=0, help="Units (heads or key/value groups) kept in all, at most."),
]
Minimum = Annotated[
    int, typer.Option("--minimum", min=0, help="Units kept in every block, at least.")
]
Maximum = Annotated[
    int | None, typer.Option("--maximum", min=0, help="Units kept in every block, at most.")
]
MultipleOf = Annotated[
    int,
    typer.Option(
        "--multiple-of",
        min=1,
        help="Every block keeps a multiple of this many units, or all: some hardware is only fast at such "
        "widths.",
    ),
]
TableFile = Annotated[
    Path | None,
    typer.Option("--latency-table", metavar="FILE", help="Profile of `cahp latency`."),
]
WorkloadOption = Annotated[
    list[str] | None,
    typer.Option(
        "--workload",
        metavar="[NAME=]PHASE:BATCHxLENGTH",
        help="What is timed, such as prefill:8x128, decode:8x1024 or long=prefill:1x4096; called after "
        "its phase without a name. May be repeated.",
    ),
]
ExecutionOption = Annotated[
    Execution, typer.Option("--execution", help="How the model is run while it is timed.")
]
UnitsOption = Annotated[
    Units,
    typer.Option(
        "--units",
        help="Units under grouped-query attention: auto for key/value heads with all their query heads; "
        "query-slots for query heads, the same number for every key/value head.",
    ),
]
Objective = Annotated[
    ObjectiveName | None,
    typer.Option(
        "--objective",
        help="What is maximised; if not given, gauss-newton with --recovery none, else "
        "explained-output, and explained-variance for models that embed texts by pooling all tokens (and statistics without "
        "sensitivity).",
    ),
]
SolverChoice = Annotated[
    SolverName | None,
    typer.Option(
        "--solver",
        help="By what it is maximised; dynamic-program for sums over blocks and auto else, if not given.",
    ),
]
TimeLimit = Annotated[
    float | None, typer.Option("--time-limit", help="Seconds that the solver may take.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads of the CPU; as PyTorch sets them if not given, and no more than a container is granted.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Such as cpu or cuda; CUDA where there is one if not given."),
]
Dtype = Annotated[
    Precision | None,
    typer.Option(
        "--dtype",
        help="Precision of the weights; float32 on a CPU and the checkpoint's own elsewhere if not "
        "given.",
    ),
]
MaxTexts = Annotated[
    int, typer.Option("--max-texts", min=1, help="Texts to calibrate and refit on, at most.")
]
HeldOut = Annotated[
    int,
    typer.Option(
        "--held-out",
        min=0,
        help="Texts kept back to judge by, at most a fifth of all; never calibrated or refitted on.",
    ),
]
MaxLength = Annotated[int, typer.Option("--max-length", min=1, help="Tokens per text, at most.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts per batch.")]
LatencyBatch = Annotated[
    int, typer.Option("--latency-batch-size", min=1, help="Texts per batch that is timed.")
]
SequenceLength = Annotated[
    int | None,
    typer.Option(
        "--sequence-length",
        min=1,
        help="Tokens per text that is timed; 128, or the model's most, if not given.",
    ),
]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of every point.")]
Rounds = Annotated[
    int,
    typer.Option(
        "--rounds",
        min=1,
        help="Sliced models that are timed until a latency goal is met, at most; after a miss the tables "
        "are corrected and the units selected again.",
    ),
]
RecoveryOption = Annotated[
    Recovery,
    typer.Option(
        "--recovery",
        help="How the sliced model gets back what it lost: none; refit, least squares; "
        "finetune, the refit and then training towards the unpruned model (and on labels).",
    ),
]
WeightingOption = Annotated[
    Weighting,
    typer.Option(
        "--weighting",
        help="How much each token counts in the refit: sensitivity, by the gradient of the output; or "
        "equal, for models too large for gradients.",
    ),
]
FeedForwardOption = Annotated[
    bool,
    typer.Option(
        "--feed-forward/--no-feed-forward",
        help="Whether the refit fits the feed-forward parts too; it repairs more and takes several times as "
        "long.",
    ),
]
PoolingOption = Annotated[
    Pooling | None,
    typer.Option(
        "--pooling",
        help="How the model embeds texts, if it does; as the files of sentence-transformers beside it say, "
        "or else the mean over all tokens, if not given.",
    ),
]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Of --recovery finetune.")]
LearningRate = Annotated[
    float, typer.Option("--learning-rate", min=1e-9, help="Of --recovery finetune, at its highest.")
]
OutputDir = Annotated[
    Path, typer.Option("--output-dir", metavar="DIR", help="Folder to write; new or empty.")
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the model that an earlier run wrote to the output folder; all else in it stays.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"cahp-opt {cahp_opt.__version__}")
        raise typer.Exit


def _jobs(number: int) -> int:
    if number < 1 and number != -1:
        raise ValueError(f"`--jobs` must be at least 1, or -1 for one per core, got {number}.")
    return number


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    del version


# -- commands --------------------------------------------------------------------------------------


@app.command()
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
    given = _given(context)
    goals = _goals(latency, parameters, memory, kv_cache)
    target = _target(Target(goals, heads, minimum, maximum, multiple_of), "0.8")
    profile = Profile.load(latency_table) if latency_table else None
    timed = profile is not None and bool(profile.latency)
    _note(given.check(table_times=timed))
    _note(given.check(goals=target.goals, latency_goals=target.latencies))
    texts = _texts(text, data, max_texts, held_out, seed)
    if profile is None or not timed:
        default = Workload(latency_batch_size, sequence_length, repeats, execution=execution)
        asked = [Workload.parse(w, repeats=repeats, execution=execution) for w in workload or ()]
        workloads = workloads_for(target.latencies, asked, default)
    else:
        ready = target.workloads(profile) or profile.latency
        workloads = tuple(
            Workload.of(name, table.provenance, repeats) for name, table in ready.items()
        )
    _check_folder(output_dir, overwrite, model)
    display = Display()
    named = _named(model, threads, device, precision, display, pooling=pooling, leave_out=leave_out)
    embeds = _embeds(named)
    method = Method.suiting(recovery, objective, solver, time_limit, seed, embeds=embeds)
    _note(given.check(solvers=(method.solver,)))
    _note(_idle_units(units, named.model))

    from cahp_opt.torch.pipeline.pruning_run import run_pipeline

    with _kept_runs(output_dir.resolve(), () if profile else workloads) as samples:
        report = run_pipeline(
            named,
            texts,
            target,
            method,
            Applying(
                recovery,
                workloads,
                Reading(batch_size, max_length, seed),
                rounds,
                epochs,
                learning_rate,
                weighting,
                feed_forward,
            ),
            output_dir,
            profile=profile,
            unit=units.unit,
            samples=samples,
            overwrite=overwrite,
            display=display,
        )
    _show(report, output_dir)


@app.command()
def calibrate(
    context: typer.Context,
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="Statistics to write (safetensors).")
    ] = Path("stats.safetensors"),
    units: UnitsOption = Units.AUTO,
    text: Text = None,
    data: Data = None,
    gradient_examples: Annotated[
        int,
        typer.Option(
            "--gradient-examples",
            min=0,
            help="Texts to take gate gradients on, for salience and gauss-newton.",
        ),
    ] = 256,
    sensitivity_examples: Annotated[
        int | None,
        typer.Option(
            "--sensitivity-examples",
            min=0,
            help="Texts to weigh tokens by the output's sensitivity on, for explained-output; if not "
            "given, 2048, and 0 for models that embed texts by pooling all tokens.",
        ),
    ] = None,
    divergence_examples: Annotated[
        int,
        typer.Option(
            "--divergence-examples",
            min=0,
            help="Texts to compare attention maps on, for facility-location.",
        ),
    ] = 0,
    pooling: PoolingOption = None,
    signature_size: Annotated[
        int,
        typer.Option(
            "--signature-size",
            min=0,
            help="Cells per side of attention maps by class, for complementarity (32 in the paper); "
            "needs --data with labels.",
        ),
    ] = 0,
    max_texts: MaxTexts = 2000,
    held_out: HeldOut = 256,
    max_length: MaxLength = 128,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    precision: Dtype = None,
    leave_out: LeaveOut = None,
) -> None:
    """Measure the heads of a model on texts.

    The same texts as in `cahp prune` are kept back, and not looked at.
    """
    given = _given(context)
    texts = _texts(text, data, max_texts, held_out, seed)
    _note(_too_many(given, len(texts.calibration)))
    if signature_size and any(example.label is None for example in texts.calibration):
        raise ValueError(
            f"`--signature-size {signature_size}` tells units apart by class, and the texts have no "
            "labels; give `--data` with a column label."
        )
    _check_file(output, "cahp-stats")
    display = Display()
    named = _named(model, threads, device, precision, display, pooling=pooling, leave_out=leave_out)
    _note(_idle_units(units, named.model))
    if sensitivity_examples is None:
        sensitivity_examples = 0 if _embeds(named) else 2048

    from cahp_opt.torch import calibrate as measure
    from cahp_opt.torch.checkpoints.model_loading import output_of
    from cahp_opt.torch.evaluation.fidelity import embedding_notes
    from cahp_opt.torch.texts.encoding import encode, notes_on_empty
    from cahp_opt.torch.texts.rehearsal import rehearse_texts

    fidelity = output_of(named.name, named.model, named.pooling)
    _note(embedding_notes(named.model, fidelity))
    batches = encode(
        texts.calibration,
        named.tokenizer,
        named.model,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
    )
    _note([*texts.notes, *notes_on_empty(TextSplit(texts.calibration, ()), batches)])
    rehearse_texts(named.model, batches[0], fidelity)
    with display.stage("calibrate") as progress:
        stats = measure(
            named.model,
            batches,
            gradient_examples=gradient_examples,
            sensitivity_examples=sensitivity_examples,
            divergence_examples=divergence_examples,
            signature_size=signature_size,
            fidelity=fidelity,
            unit=units.unit,
            seed=seed,
            progress=progress,
        )
    stats.save(output)
    _note(ObjectiveName.EXPLAINED_VARIANCE.remarks(stats))
    print(f"{output}: {stats.examples:,} texts, {stats.tokens:,} tokens, {stats.space.n} units")


@app.command()
def latency(
    context: typer.Context,
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="Profile to write (JSON).")
    ] = Path("latency.json"),
    units: UnitsOption = Units.AUTO,
    workload: WorkloadOption = None,
    execution: ExecutionOption = Execution.EAGER,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Texts per batch that is timed.")
    ] = 8,
    sequence_length: SequenceLength = None,
    repeats: Repeats = 20,
    estimate: Annotated[
        Path | None,
        typer.Option(
            "--estimate",
            metavar="FILE",
            help="Measure nothing, and estimate the times on the device that this file of `cahp "
            "hardware` describes: for planning only, it can be far off.",
        ),
    ] = None,
    threads: Threads = None,
    device: Device = None,
    precision: Dtype = None,
    leave_out: LeaveOut = None,
) -> None:
    """Measure the seconds of every block at every number of kept units, on this machine.

    The profile also counts weights, bytes and the key/value cache. Without --workload, one prefill of
    --batch-size texts of --sequence-length tokens is timed. An interrupted measurement goes on where it
    stopped when the same command is run again.
    """
    _given(context)
    hardware = Hardware.load(estimate) if estimate else None
    if hardware is not None and execution is not Execution.EAGER:
        raise ValueError(
            f"`--execution {execution.value}` cannot be estimated; leave out `--execution` or "
            "`--estimate`."
        )
    default = Workload(batch_size, sequence_length, repeats, execution=execution)
    asked = [Workload.parse(w, repeats=repeats, execution=execution) for w in workload or ()]
    workloads = workloads_for((), asked, default)
    _check_file(output, "cahp-profile", "cahp-latency")
    display = Display()
    where = device if hardware is None else "cpu"
    loaded = _model(model, threads, where, precision, display, leave_out)
    _note(_idle_units(units, loaded))

    from cahp_opt.torch.pipeline.profiles import estimate_profile, measure_profile

    if hardware is not None:
        profile = estimate_profile(loaded, workloads, hardware, display, units.unit)
        profile.save(output)
    else:
        with _kept_runs(output, workloads) as samples:
            profile = measure_profile(loaded, workloads, display, units.unit, samples=samples)
            profile.save(output)
    for line in profile_lines(profile):
        print(line)
    _note(f"{name}: {remark}" for name, t in profile.latency.items() for remark in t.remarks)
    print(f"written: {output}")


@app.command()
def hardware(
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="Record to write (JSON).")
    ] = Path("hardware.json"),
    threads: Threads = None,
    device: Device = None,
    precision: Annotated[
        list[Precision] | None,
        typer.Option(
            "--dtype",
            help="Precision that models will run in; may be repeated; float32 on a CPU and all three "
            "elsewhere if not given.",
        ),
    ] = None,
) -> None:
    """Measure what this device can do at best, for `cahp latency --estimate` on another machine."""
    _check_file(output, "cahp-hardware")
    display = Display()
    with display.stage("load"):
        import torch

        from cahp_opt.torch.checkpoints.model_loading import device_named
        from cahp_opt.torch.latency.peak_rates import measure_hardware

        told = _set_threads(threads)
        place = device_named(device)
    _note(told)
    every = (Precision.FLOAT32,) if place.type == "cpu" else tuple(Precision)
    with display.stage("hardware"):
        found = measure_hardware(place, *(getattr(torch, p.value) for p in precision or every))
    found.save(output)
    for name, rate in found.flops_per_second.items():
        print(f"{found.name}: {rate / 1e9:,.0f} Gflop/s in {name}")
    print(
        f"{found.name}: {found.bytes_per_second / 1e9:,.1f} GB/s read and written, "
        f"{1e6 * found.launch_seconds:.1f} us per operation launched"
    )
    print(f"written: {output}")


@app.command()
def select(
    context: typer.Context,
    stats: Annotated[
        Path, typer.Option("--stats", metavar="FILE", help="Statistics of `cahp calibrate`.")
    ],
    latency_table: TableFile = None,
    latency: Latency = None,
    parameters: Parameters = None,
    memory: Memory = None,
    kv_cache: KvCache = None,
    heads: Heads = None,
    minimum: Minimum = 1,
    maximum: Maximum = None,
    multiple_of: MultipleOf = 1,
    objective: Objective = None,
    solver: SolverChoice = None,
    recovery: RecoveryOption = Recovery.REFIT,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="Selection to write (JSON).")
    ] = Path("selection.json"),
    time_limit: TimeLimit = None,
    seed: Seed = 0,
) -> None:
    """Choose the units to keep, from saved records; needs no PyTorch.

    With --latency-table and no limit, the budget is 0.8 of the unpruned time.
    """
    given = _given(context)
    goals = _goals(latency, parameters, memory, kv_cache)
    target = Target(goals, heads, minimum, maximum, multiple_of)
    _check_file(output, "cahp-selection")
    measured = _stats(stats)
    profile = Profile.load(latency_table) if latency_table else None
    if profile is not None and profile.latency:
        target = _target(target, "0.8")
    _note(target.remarks(profile))  # before a refusal, which may stand on an estimate
    embeds = not measured.sensitivity
    method = Method.suiting(recovery, objective, solver, time_limit, seed, embeds=embeds)
    _note(given.check(goals=target.goals))
    _note(given.check(solvers=(method.solver,)))
    selection = method.choose(measured, target, profile)
    _note([*target.loose(measured.space, profile), *method.objective.remarks(measured)])
    selection.save(output)
    Console().print(selection_tables(selection))
    print(f"written: {output}")


@app.command()
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
        typer.Option("--jobs", callback=_jobs, help="Runs at the same time; -1 for one per core."),
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

    given = _given(context)
    measured = _stats(stats)
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
    _note(dict.fromkeys(remark for target in targets for remark in target.remarks(profile)))
    problems: dict[str, Problem] = {}
    for target in targets:
        name = f"latency {target.goals[0]}" if target.goals else f"{target.heads} units"
        problems[name] = Problem(goal, target.budget(measured.space, profile, measured.model))
    _note(dict.fromkeys(s for target in targets for s in target.loose(measured.space, profile)))
    names = solver or [name.value for name in SolverName if name.value != "brute-force" or n <= 20]
    solvers = {name: solver_named(name) for name in names}
    known = {name.value: name for name in SolverName}
    _note(given.check(solvers=[known.get(name, name) for name in names]))
    _check_comparison(output_dir)
    unplotted = plots_missing()
    if unplotted is not None:  # the table is there without the pictures
        _note([unplotted])
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


@app.command()
def apply(
    context: typer.Context,
    model: Model,
    selection: Annotated[
        Path, typer.Option("--selection", metavar="FILE", help="Selection of `cahp select`.")
    ],
    text: Text = None,
    data: Data = None,
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
    latency_batch_size: Annotated[
        int | None,
        typer.Option(
            "--latency-batch-size",
            min=1,
            help="Texts per batch that is timed; as in the selection's table, or 8, if not given.",
        ),
    ] = None,
    sequence_length: SequenceLength = None,
    repeats: Repeats = 20,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    precision: Dtype = None,
    leave_out: LeaveOut = None,
) -> None:
    """Slice a model to a saved selection, recover it if there are texts, check and save it."""
    _given(context)
    chosen = Selection.load(selection)
    texts = _texts(text, data, max_texts, held_out, seed) if text or data else None
    _check_folder(output_dir, overwrite, model)
    display = Display()
    named = _named(
        model,
        threads,
        device,
        precision,
        display,
        texts_needed=texts is not None,
        pooling=pooling,
        leave_out=leave_out,
    )
    if texts is not None:
        _embeds(replace(named, pooling=pooling or recorded_pooling(chosen.provenance)))

    from cahp_opt.torch.pipeline.applying import apply_selection

    timed = recorded_workloads(chosen.provenance, repeats) or (Workload(repeats=repeats),)
    workloads = tuple(
        replace(
            workload,
            batch_size=latency_batch_size or workload.batch_size,
            sequence_length=sequence_length or workload.sequence_length,
        )
        for workload in timed
    )
    report = apply_selection(
        named,
        chosen,
        texts,
        Applying(
            recovery,
            workloads,
            Reading(batch_size, max_length, seed),
            epochs=epochs,
            learning_rate=learning_rate,
            weighting=weighting,
            feed_forward=feed_forward,
        ),
        output_dir,
        overwrite=overwrite,
        display=display,
    )
    _show(report, output_dir)


@app.command()
def demo(
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir",
            metavar="DIR",
            help="Folder to write; one of an earlier run is replaced.",
        ),
    ] = Path("pruned-minilm"),
    latency: Latency = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Prune all-MiniLM-L6-v2 with text that every Python carries; a few minutes on two cores.

    Without --latency, the budget is 0.8 of the unpruned end-to-end time.
    """
    from cahp_opt.demo import demo_model, demo_texts

    target = _target(Target(_goals(latency)), "0.8")
    workloads = workloads_for(target.latencies, (), Workload())
    overwrite = Belongings.of(output_dir).recognised
    _check_folder(output_dir, overwrite)
    display = Display()
    named = _named(str(demo_model()), threads, "cpu", None, display)
    texts = split(demo_texts(), most=2000, held_out=256, seed=seed)

    from cahp_opt.torch.pipeline.pruning_run import run_pipeline

    with _kept_runs(output_dir.resolve(), workloads) as samples:
        report = run_pipeline(
            named,
            texts,
            target,
            Method.suiting(Recovery.REFIT, seed=seed, embeds=_embeds(named)),
            Applying(workloads=workloads, reading=Reading(seed=seed)),
            output_dir,
            samples=samples,
            overwrite=overwrite,
            display=display,
        )
    _show(report, output_dir)


# -- what commands share ---------------------------------------------------------------------------


def _given(context: typer.Context) -> Given:
    """What the command line said; options that are idle beside others are refused or noted here."""
    given = Given.of(context)
    _note(given.check())
    return given


def _too_many(given: Given, texts: int) -> Iterable[str]:
    """Numbers of examples that were asked for and are not there, as sentences."""
    for name in ("gradient_examples", "sensitivity_examples", "divergence_examples"):
        if name in given.explicit and given.values[name] > texts:
            yield (
                f"`--{name.replace('_', '-')} {given.values[name]}` is more than the {texts} texts that "
                "there are to calibrate on; all of them are taken."
            )


def _idle_units(units: Units, model: nn.Module) -> Iterable[str]:
    """A sentence if the units that were asked for are those that the model has anyway."""
    from cahp_opt.torch import find_attention

    if units.unit is not None and not any(
        block.unit is units.unit for block in find_attention(model, unit=units.unit)
    ):
        yield (
            f"`--units {units.value}` does nothing here: no query heads of this model share key/value "
            "heads."
        )


def _texts(
    text: Path | None, data: Path | None, max_texts: int, held_out: int, seed: int
) -> TextSplit:
    if (text is None) == (data is None):
        raise ValueError("give the texts either as `--text FILE` or as `--data TSV`.")
    examples = LineTexts(text) if text is not None else TableTexts(data or "")
    return split(examples, most=max_texts, held_out=held_out, seed=seed)


def _goals(
    latency: Sequence[str] | None,
    parameters: str | None = None,
    memory: str | None = None,
    kv_cache: str | None = None,
) -> tuple[Goal, ...]:
    goals: list[Goal] = [asked_latency(text) for text in latency or ()]
    for name, text in ((PARAMETERS, parameters), (MEMORY, memory), (KV_CACHE, kv_cache)):
        if text is not None:
            goals.append(ResourceGoal.parse(name, text))
    return tuple(goals)


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
        _note([f"{' and '.join(below)} of the unpruned time cannot be reached, and is left out."])
    return found or list(ratios)


def _target(target: Target, default: str) -> Target:
    """The target, with a default latency if nothing limits it."""
    if target.goals or target.heads is not None or target.maximum is not None:
        return target
    return replace(target, goals=(LatencyGoal.parse(default),))


@contextmanager
def _kept_runs(output: Path, workloads: Iterable[Workload]) -> Generator[dict[str, Path]]:
    """Files beside ``output`` that keep timed runs, by workload, until the body has ended well."""
    files = {w.name: output.with_name(f"{output.name}.{w.name}.jsonl") for w in workloads}
    try:
        yield files
    except RecordError:  # which may be about these files
        raise
    except (KeyboardInterrupt, Exception) as stop:
        runs = [str(path) for path in files.values() if path.exists()]
        if not runs:
            raise
        told = f"the runs so far are in {', '.join(runs)}, and the same command goes on from there."
        if isinstance(stop, KeyboardInterrupt):
            raise InterruptedMeasurement(f"interrupted; {told}") from None
        _note([told])
        raise
    for path in files.values():
        path.unlink(missing_ok=True)


def _stats(path: Path) -> HeadStats:
    """Statistics, with a note about what their record leaves open."""
    measured = HeadStats.load(path)
    open_question = coverage_note("the record of the statistics", measured.model)
    _note([open_question] if open_question else [])
    return measured


def _note(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(f"note: {sentence}", file=sys.stderr)


def _set_threads(threads: int | None) -> list[str]:
    """Set the threads of the CPU: those asked for, or as many of PyTorch's as have a processor.

    Returns:
        What there is to say about it.
    """
    import torch

    from cahp_opt.costs.processors import fitting_threads, granted

    usual = torch.get_num_threads()
    wanted = usual if threads is None else threads
    fitting = fitting_threads(wanted)
    share = f"control groups grant {granted():g} of the processors" if granted() else ""
    told = list[str]()
    if threads is None and fitting < usual and "OMP_NUM_THREADS" not in os.environ:
        wanted = fitting
        why = share or "the process may run on no more processors"
        told.append(f"{wanted} threads of {usual}, because {why}; `--threads` overrides it.")
    elif share and fitting < wanted:
        told.append(f"{wanted} threads are stopped for a part of the time, because {share}.")
    torch.set_num_threads(wanted)
    return told


def _model(
    name: str,
    threads: int | None,
    device: str | None,
    precision: Precision | None,
    display: Display,
    leave_out: Sequence[str] | None = None,
) -> nn.Module:
    with display.stage("load"):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

        from cahp_opt.torch.checkpoints.model_loading import foreign_code, load_model, quiet

        quiet()
        told = _set_threads(threads)
        lost = tuple(dict.fromkeys(leave_out or ()))
        model = load_model(name, device=device, precision=precision, leave_out=lost)
    _note([*told, *foreign_code(name, model)])
    _note(f"the weights of {module} in {name} are left out." for module in lost)
    return model


def _embeds(named: Named) -> bool:
    """Whether a model's output is an embedding that all of its tokens make; refuses an output that cannot be
    compared."""
    from cahp_opt.torch.checkpoints.model_loading import output_of
    from cahp_opt.torch.evaluation.fidelity import PooledEmbedding

    output = output_of(named.name, named.model, named.pooling)
    return isinstance(output, PooledEmbedding) and not output.pooling.reads_one_token


def _named(
    name: str,
    threads: int | None,
    device: str | None,
    precision: Precision | None,
    display: Display,
    *,
    texts_needed: bool = True,
    pooling: Pooling | None = None,
    leave_out: Sequence[str] | None = None,
) -> Named:
    model = _model(name, threads, device, precision, display, leave_out)

    from cahp_opt.torch.checkpoints.model_loading import ModelError, foreign_tokens, load_tokenizer
    from cahp_opt.torch.pipeline.run import Named

    try:
        tokenizer = load_tokenizer(name)
    except ModelError:
        if texts_needed:
            raise
        tokenizer = None
    _note(foreign_tokens(name, tokenizer))
    return Named(name, model, tokenizer, pooling)


def _check_folder(path: Path, overwrite: bool, model: str | None = None) -> None:
    """Refuse an output folder that could not be written in the end, and tell what goes and what stays."""
    if path.is_file():
        raise ValueError(f"`--output-dir` {path} is a file; name a folder.")
    if model is not None and path.is_dir() and Path(model).resolve() == path.resolve():
        raise ValueError(
            f"`--output-dir` {path} is the folder of the model that is to be pruned; name another one."
        )
    there = Belongings.of(path)
    if there.ours or there.foreign:
        what = f"`--output-dir` {path}"
        if not overwrite:
            raise ValueError(
                f"{what} is not empty; name another folder, or give `--overwrite` where the command has it."
            )
        if not there.recognised:
            raise ValueError(
                f"{what} holds {_some(there.foreign)}, and no model that this command wrote, so nothing in "
                "it is replaced; name another folder."
            )
        if there.foreign_weights:
            raise ValueError(
                f"{what} holds weights that this command did not write, {_some(there.foreign_weights)}, "
                "and would be unusable with others beside them; move them away, or name another folder."
            )
        _note([f"{path}: {_some(there.ours)} will be replaced in the end."])
        if there.foreign:
            stay = "stays" if len(there.foreign) == 1 else "stay"
            _note([f"{path}: {_some(there.foreign)} {stay}, which this command did not write."])
    _check_writable(path)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:9]) + (f" and {len(names) - 9} more" if len(names) > 9 else "")


def _check_file(path: Path, *kinds: str) -> None:
    """Refuse an output file that could not be written in the end, or that is no earlier record."""
    if path.is_dir():
        raise ValueError(f"`--output` {path} is a folder; name a file.")
    if path.is_file() and path.stat().st_size and not is_record(path, *kinds):
        raise ValueError(
            f"`--output` {path} is no {kinds[0]} that this command wrote before, so it is not replaced; name "
            "another file."
        )
    if path.is_file() and path.name in Belongings.of(path.parent).ours:
        raise ValueError(
            f"`--output` {path} belongs to the model that was saved in {path.parent}; name another file."
        )
    _check_writable(path)


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
            f"`--output-dir` {folder} holds {_some([path.name for path in theirs])}, which no comparison "
            "wrote, so nothing in it is replaced; name another folder."
        )
    _check_writable(runs)


def _check_writable(path: Path) -> None:
    above = path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written, because nothing can be made in {above}.")


def _show(report: Report, folder: Path) -> None:
    Console().print(tables(report, str(folder)))


def _commands(arguments: Sequence[str]) -> tuple[str | None, dict[str, dict[str, str]]]:
    """The command that was given, and of every command its options by argument."""
    group: Any = typer.main.get_command(app)
    options = {
        name: {p.name: p.opts[0] for p in command.params if p.opts[0].startswith("--")}
        for name, command in group.commands.items()
    }
    return next((word for word in arguments if word in options), None), options


class InterruptedMeasurement(Exception):
    """Ctrl-C or a signal came while something could be kept; the sentence says what."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0; 2 for what the user can put right, told in one sentence on stderr; 130
        after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP, which clear up as Ctrl-C does.
    """
    with never_failing_streams(), stopping_in_order() as stop:
        code = _run(arguments)
        return code if stop.code is None or code != 130 else stop.code


def _run(arguments: Sequence[str] | None) -> int:
    """The exit code; 130 after any interruption."""
    code: object
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # advice of other libraries is for programmers
                warnings.simplefilter("ignore")
            app(args=arguments, prog_name="cahp")
        code = 0
    except SystemExit as done:
        code = done.code
    except KeyboardInterrupt:
        code = 130
    except InterruptedMeasurement as stop:
        print(f"cahp: {stop}", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        given = sys.argv[1:] if arguments is None else arguments
        print(f"cahp: {as_options(sentence, *_commands(given))}", file=sys.stderr)
        return 2
    if code == 130:
        print("cahp: interrupted; nothing was written.", file=sys.stderr)
    return code if isinstance(code, int) else 0 if code is None else 2
