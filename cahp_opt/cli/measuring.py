"""``cahp calibrate``, ``cahp latency`` and ``cahp hardware``: what is measured before anything is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cahp_opt.cli.display import Display
from cahp_opt.cli.launching import is_first
from cahp_opt.cli.loading import (
    embeds,
    in_kinds,
    model_of,
    named_of,
    processor_of,
    read_by,
    set_threads,
)
from cahp_opt.cli.notes import note
from cahp_opt.cli.options import MeasuredModel, ModelOptions
from cahp_opt.cli.outputs import check_file, kept_runs
from cahp_opt.cli.tables import profile_lines
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.hardware import Hardware
from cahp_opt.costs.provenance import Execution
from cahp_opt.costs.quantities import metered
from cahp_opt.costs.target import Target
from cahp_opt.runs.kinds import OF_ATTENTION, MeasuredKinds
from cahp_opt.runs.measuring import DECIDED, Measuring, MeasuringOptions
from cahp_opt.runs.media import Medium
from cahp_opt.runs.names import ObjectiveName, Precision
from cahp_opt.runs.options import option, same
from cahp_opt.runs.plan import SelectionOptions, TextOptions
from cahp_opt.runs.texts import TextSplit
from cahp_opt.runs.timing_options import WorkloadOptions

if TYPE_CHECKING:
    from cahp_opt.stats.head_stats import HeadStats
    from cahp_opt.torch.pipeline.run import Named


@dataclass(frozen=True)
class StatisticsOptions:
    """Which statistics are measured, and where they go."""

    topic: ClassVar[str] = "Statistics"

    output: Path = field(
        default=Path("stats.safetensors"),
        metadata=option("--output", metavar="FILE", help="Statistics to write (safetensors)."),
    )
    objective: tuple[ObjectiveName, ...] = field(
        default=(),
        metadata=option(
            "--objective",
            help="Objective to measure for; may be repeated. Default: all but facility-location and "
            "complementarity, and explained-output only for models that do not embed texts by pooling all "
            "tokens.",
        ),
    )
    amounts: MeasuringOptions = field(default_factory=MeasuringOptions)
    seed: int = same(SelectionOptions, "seed")

    def asked(self, given: Given) -> Measuring:
        """What the objectives need, and whatever an amount was given for."""
        usual = [name for name in ObjectiveName if not name.needs & {"divergence", "signatures"}]
        needed = set[str]().union(*(name.needs for name in self.objective or usual))
        for number, statistics in DECIDED.items():
            if number in given.explicit and given.values[number] and not needed & statistics:
                needed |= statistics - {"fisher"}
        refitted = any(name.refitted for name in self.objective or usual)
        return replace(self.amounts.of(needed), refitted=refitted)

    def reader_of_maps(self, given: Given) -> str | None:
        """The option that asks for attention maps; None if none does."""
        for name in self.objective:
            if name.needs & OF_ATTENTION:
                return f"--objective {name.value}"
        for number, statistics in DECIDED.items():
            if statistics & OF_ATTENTION and number in given.explicit and given.values[number]:
                return given.flags[number]
        return None


def calibrate(
    given: Given,
    texts: TextOptions,
    statistics: StatisticsOptions,
    kinds: MeasuredKinds,
    model: MeasuredModel,
) -> None:
    """Measure the attention heads and the feed-forward neurons of a model on texts.

    The same texts as in `cahp prune` are kept back, and not looked at.
    """
    note(given.check())
    examples = texts.read(statistics.seed)
    note(too_many(given, len(examples.calibration)))
    for objective in statistics.objective:
        statistics.amounts.check(objective.value, objective.needs)
    measuring = statistics.asked(given)
    wanted = kinds.measured(statistics.reader_of_maps(given))
    size = measuring.amounts.signature_size if "signatures" in measuring else 0
    if size and any(example.label is None for example in examples.calibration):
        raise ValueError(
            f"`--signature-size {size}` compares units by class, and the texts have no labels; give "
            "`--data` with a column label."
        )
    check_file(statistics.output, "cahp-stats")
    display = Display()
    loaded = named_of(model, display, medium=texts.medium, pooling=texts.pooling)
    note(given.check(**read_by(loaded.model)))
    named = in_kinds(loaded, wanted, model.units)
    print(f"measured: {named.kinds.sentence}", flush=True)
    note(given.check(prunes=named.kinds.prune))
    if not statistics.objective and embeds(named) and "sensitivity_examples" not in given.explicit:
        measuring = replace(measuring, statistics=measuring.statistics - {"sensitivity"})
    if named.prunable.feed_forward:  # see `Curvature.of`
        measuring = replace(measuring, densities=(1.0,))
    stats = _measured(named, examples, texts, statistics, measuring, display)
    if not is_first():
        return
    stats.save(statistics.output)
    note(ObjectiveName.EXPLAINED_VARIANCE.remarks(stats))
    print(
        f"{statistics.output}: {stats.examples:,} {texts.medium.value}, "
        f"{f'{stats.tokens:,} tokens, ' if texts.medium is Medium.TEXT else ''}{stats.space.n} units"
    )


def _measured(
    named: Named,
    examples: TextSplit,
    texts: TextOptions,
    statistics: StatisticsOptions,
    measuring: Measuring,
    display: Display,
) -> HeadStats:
    """The statistics, once it is known that the model can be run on the texts."""
    from cahp_opt.torch.checkpoints.model_loading import output_of
    from cahp_opt.torch.evaluation.fidelity import embedding_notes
    from cahp_opt.torch.pipeline.calibrating import calibrate_kinds
    from cahp_opt.torch.texts.reading import encode_examples
    from cahp_opt.torch.texts.rehearsal import rehearse_texts
    from cahp_opt.torch.texts.scored_pairs import PAIR_NOTE, are_scored_pairs, calibration_texts

    fidelity = output_of(named.name, named.model, named.pooling)
    note(embedding_notes(named.model, fidelity))
    paired = are_scored_pairs(examples, fidelity)
    batches, counts = encode_examples(
        calibration_texts(examples) if paired else examples.calibration,
        named.tokenizer,
        named.model,
        texts.reading,
        statistics.seed,
    )
    note([*examples.notes, *counts.notes(), *([PAIR_NOTE] if paired else [])])
    if texts.medium is Medium.TEXT:
        print(f"read: {counts.in_words()}", flush=True)
    rehearse_texts(named.prunable, batches[0], fidelity, texts.medium)
    with display.stage("calibrate") as progress:
        return calibrate_kinds(
            named.prunable,
            batches,
            measuring,
            fidelity=fidelity,
            seed=statistics.seed,
            folder=statistics.output.resolve().parent,
            progress=progress,
        ).stats


def too_many(given: Given, texts: int) -> Iterable[str]:
    """Sentences on requested numbers of examples that the texts lack."""
    for name in ("gradient_examples", "sensitivity_examples", "divergence_examples"):
        if name in given.explicit and given.values[name] > texts:
            yield (
                f"`{given.flags[name]} {given.values[name]}` is more than the {texts} texts that there are "
                "to calibrate on; all of them are taken."
            )


@dataclass(frozen=True)
class ProfiledOptions(WorkloadOptions):
    """The workloads to time, block by block, or to estimate."""

    latency_batch_size: int = field(
        default=8, metadata=option("--batch-size", min=1, help="Texts per timed batch.")
    )
    estimate: Path | None = field(
        default=None,
        metadata=option(
            "--estimate",
            metavar="FILE",
            help="Measure nothing, and estimate the times on the device that this file of `cahp "
            "hardware` describes: for planning only, it can be far off.",
        ),
    )


@dataclass(frozen=True)
class ProfileOutput:
    """Where a profile goes."""

    topic: ClassVar[str] = "Output"

    output: Path = field(
        default=Path("latency.json"),
        metadata=option("--output", metavar="FILE", help="Profile to write (JSON)."),
    )


def latency(
    given: Given,
    timing: ProfiledOptions,
    written: ProfileOutput,
    kinds: MeasuredKinds,
    model: MeasuredModel,
) -> None:
    """Measure the seconds of every block at every number of kept units, on this machine.

    The profile also counts weights, bytes and the key/value cache. Without --workload, one prefill of
    --batch-size texts of --sequence-length tokens is timed. If interrupted, the measurement resumes when
    the same command is run again.
    """
    note(given.check())
    wanted = kinds.measured()
    hardware = Hardware.load(timing.estimate) if timing.estimate else None
    if hardware is not None and timing.execution is not Execution.EAGER:
        raise ValueError(
            f"`--execution {timing.execution.value}` cannot be estimated; leave out `--execution` or "
            "`--estimate`."
        )
    workloads, output = timing.workloads(Target()), written.output
    check_file(output, "cahp-profile", "cahp-latency")
    display = Display()
    loaded = model_of(model if hardware is None else replace(model, device="cpu"), display)

    from cahp_opt.torch.pipeline.profiles import estimate_profile, measure_profile
    from cahp_opt.torch.pipeline.run import Named

    processor = processor_of(model, loaded)
    note(given.check(**read_by(loaded)))
    named = in_kinds(Named(model.model, loaded, processor), wanted, model.units)
    print(f"measured: {named.kinds.sentence}", flush=True)
    note(given.check(prunes=named.kinds.prune))
    prunable = named.prunable
    if hardware is not None:
        profile = estimate_profile(prunable, workloads, hardware, display, processor)
        profile.save(output)
    else:
        with kept_runs(output, workloads) as samples:
            also = metered(workload.name for workload in workloads)
            profile = measure_profile(
                prunable,
                workloads,
                display,
                measured=also,
                samples=samples,
                processor=processor,
            )
            profile.save(output)
    for line in profile_lines(profile):
        print(line)
    note(f"{name}: {remark}" for name, t in profile.measured.items() for remark in t.remarks)
    print(f"written: {output}")


@dataclass(frozen=True)
class HardwareOptions:
    """The measurements of a device."""

    topic: ClassVar[str] = "Options"

    output: Path = field(
        default=Path("hardware.json"),
        metadata=option("--output", metavar="FILE", help="Record to write (JSON)."),
    )
    threads: int | None = same(ModelOptions, "threads")
    device: str | None = same(ModelOptions, "device")
    precision: tuple[Precision, ...] = field(
        default=(),
        metadata=option(
            "--dtype",
            help="Precision that models will run in. May be repeated. Default: float32 on a CPU, all "
            "three elsewhere.",
        ),
    )


def hardware(options: HardwareOptions) -> None:
    """Measure what this device can do at best, for `cahp latency --estimate` on another machine."""
    check_file(options.output, "cahp-hardware")
    display = Display()
    with display.stage("load"):
        import torch

        from cahp_opt.torch import measure_hardware
        from cahp_opt.torch.checkpoints.model_loading import device_named

        told = set_threads(options.threads)
        place = device_named(options.device)
    note(told)
    every = (Precision.FLOAT32,) if place.type == "cpu" else tuple(Precision)
    precisions = options.precision or every
    with display.stage("hardware"):
        found = measure_hardware(place, *(getattr(torch, p.value) for p in precisions))
    found.save(options.output)
    for name, rate in found.flops_per_second.items():
        print(f"{found.name}: {rate / 1e9:,.0f} Gflop/s in {name}")
    print(
        f"{found.name}: {found.bytes_per_second / 1e9:,.1f} GB/s read and written, "
        f"{1e6 * found.launch_seconds:.1f} us per operation launched"
    )
    print(f"written: {options.output}")
