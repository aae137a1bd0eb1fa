"""The stages of ``cahp prune``, each as a command of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cahp_opt.cli.display import Display
from cahp_opt.cli.loading import embeds, idle_units, model_of, named_of, set_threads
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
    stats_of,
    target_of,
    texts_of,
)
from cahp_opt.cli.outputs import check_file, check_folder, kept_runs, show
from cahp_opt.cli.tables import profile_lines, selection_tables
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.hardware import Hardware
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.provenance import Execution
from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload, recorded_workloads, workloads_for
from cahp_opt.runs.method import (
    Method,
    ObjectiveName,
    Precision,
    Units,
)
from cahp_opt.runs.plan import Applying, OutputOptions, Reading, RecoveryOptions
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.runs.texts import TextSplit
from cahp_opt.selection import Selection
from cahp_opt.stats.pooling import recorded_pooling


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
    given = given_on(context)
    texts = texts_of(text, data, max_texts, held_out, seed)
    note(_too_many(given, len(texts.calibration)))
    if signature_size and any(example.label is None for example in texts.calibration):
        raise ValueError(
            f"`--signature-size {signature_size}` tells units apart by class, and the texts have no "
            "labels; give `--data` with a column label."
        )
    check_file(output, "cahp-stats")
    display = Display()
    named = named_of(
        model, threads, device, precision, display, pooling=pooling, leave_out=leave_out
    )
    note(idle_units(units, named.model))
    if sensitivity_examples is None:
        sensitivity_examples = 0 if embeds(named) else 2048

    from cahp_opt.torch import calibrate as measure
    from cahp_opt.torch.checkpoints.model_loading import output_of
    from cahp_opt.torch.evaluation.fidelity import embedding_notes
    from cahp_opt.torch.texts.encoding import encode, notes_on_empty
    from cahp_opt.torch.texts.rehearsal import rehearse_texts

    fidelity = output_of(named.name, named.model, named.pooling)
    note(embedding_notes(named.model, fidelity))
    batches = encode(
        texts.calibration,
        named.tokenizer,
        named.model,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
    )
    note([*texts.notes, *notes_on_empty(TextSplit(texts.calibration, ()), batches)])
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
    note(ObjectiveName.EXPLAINED_VARIANCE.remarks(stats))
    print(f"{output}: {stats.examples:,} texts, {stats.tokens:,} tokens, {stats.space.n} units")


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
    given_on(context)
    hardware = Hardware.load(estimate) if estimate else None
    if hardware is not None and execution is not Execution.EAGER:
        raise ValueError(
            f"`--execution {execution.value}` cannot be estimated; leave out `--execution` or "
            "`--estimate`."
        )
    default = Workload(batch_size, sequence_length, repeats, execution=execution)
    asked = [Workload.parse(w, repeats=repeats, execution=execution) for w in workload or ()]
    workloads = workloads_for((), asked, default)
    check_file(output, "cahp-profile", "cahp-latency")
    display = Display()
    where = device if hardware is None else "cpu"
    loaded = model_of(model, threads, where, precision, display, leave_out)
    note(idle_units(units, loaded))

    from cahp_opt.torch.pipeline.profiles import estimate_profile, measure_profile

    if hardware is not None:
        profile = estimate_profile(loaded, workloads, hardware, display, units.unit)
        profile.save(output)
    else:
        with kept_runs(output, workloads) as samples:
            profile = measure_profile(loaded, workloads, display, units.unit, samples=samples)
            profile.save(output)
    for line in profile_lines(profile):
        print(line)
    note(f"{name}: {remark}" for name, t in profile.latency.items() for remark in t.remarks)
    print(f"written: {output}")


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
    check_file(output, "cahp-hardware")
    display = Display()
    with display.stage("load"):
        import torch

        from cahp_opt.torch.checkpoints.model_loading import device_named
        from cahp_opt.torch.latency.peak_rates import measure_hardware

        told = set_threads(threads)
        place = device_named(device)
    note(told)
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
    given = given_on(context)
    goals = goals_of(latency, parameters, memory, kv_cache)
    target = Target(goals, heads, minimum, maximum, multiple_of)
    check_file(output, "cahp-selection")
    measured = stats_of(stats)
    profile = Profile.load(latency_table) if latency_table else None
    if profile is not None and profile.latency:
        target = target_of(target, "0.8")
    note(target.remarks(profile))  # before a refusal, which may stand on an estimate
    embeds = not measured.sensitivity
    method = Method.suiting(recovery, objective, solver, time_limit, seed, embeds=embeds)
    note(given.check(goals=target.goals))
    note(given.check(solvers=(method.solver,)))
    selection = method.choose(measured, target, profile)
    note([*target.loose(measured.space, profile), *method.objective.remarks(measured)])
    selection.save(output)
    Console().print(selection_tables(selection))
    print(f"written: {output}")


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
    given_on(context)
    chosen = Selection.load(selection)
    texts = texts_of(text, data, max_texts, held_out, seed) if text or data else None
    check_folder(output_dir, overwrite, model)
    display = Display()
    named = named_of(
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
        embeds(replace(named, pooling=pooling or recorded_pooling(chosen.provenance)))

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
            RecoveryOptions(recovery, epochs, learning_rate, weighting, feed_forward),
            workloads,
            Reading(max_length, batch_size),
            seed,
        ),
        OutputOptions(output_dir, overwrite),
        stages=display,
    )
    show(report, output_dir)


def _too_many(given: Given, texts: int) -> Iterable[str]:
    """Numbers of examples that were asked for and are not there, as sentences."""
    for name in ("gradient_examples", "sensitivity_examples", "divergence_examples"):
        if name in given.explicit and given.values[name] > texts:
            yield (
                f"`--{name.replace('_', '-')} {given.values[name]}` is more than the {texts} texts that "
                "there are to calibrate on; all of them are taken."
            )
