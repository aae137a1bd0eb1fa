"""``cahp demo``: the whole way with a model and texts that are at hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from cahp_opt.cli.display import Display
from cahp_opt.cli.loading import embeds, in_kinds, named_of
from cahp_opt.cli.options import ModelOptions
from cahp_opt.cli.outputs import check_folder, kept_runs, show
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.prune import Prune
from cahp_opt.runs.budget_options import BudgetOptions
from cahp_opt.runs.kinds import KindOptions
from cahp_opt.runs.names import Units
from cahp_opt.runs.options import option, same
from cahp_opt.runs.plan import Applying, OutputOptions, PruningPlan, SelectionOptions, TextOptions
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.texts import split
from cahp_opt.runs.timing_options import WorkloadOptions

LATENCY, OF_HEADS = "0.7", "0.8"
"""The budget without another: this ratio of the unpruned time, and one that heads alone can reach."""

_REPEATS = 12
"""Timed runs of every model: tables of 12 runs were as close to one of 20 as two tables of 20 were to each other."""


@dataclass(frozen=True)
class DemoOptions:
    """The options of the demonstration."""

    topic: ClassVar[str] = "Options"

    output_dir: Path = field(
        default=Path("pruned-minilm"),
        metadata=option(
            "--output-dir",
            metavar="DIR",
            help="Folder to write; one of an earlier run is replaced.",
        ),
    )
    latency: tuple[str, ...] = same(BudgetOptions, "latency")
    prune: Prune | None = same(KindOptions, "prune")
    seed: int = same(SelectionOptions, "seed")
    threads: int | None = same(ModelOptions, "threads")


def demo(given: Given, options: DemoOptions) -> None:
    """Prune all-MiniLM-L6-v2 with text that every Python carries, and words of its vocabulary; a few minutes on
    two cores.

    Without --latency, the budget is 0.7 of the unpruned end-to-end time, and 0.8 with --prune heads.
    """
    from cahp_opt.demo import demo_model, demo_texts, random_words

    usual_limit = OF_HEADS if options.prune is Prune.HEADS else LATENCY
    target = BudgetOptions(latency=options.latency or (usual_limit,)).target()
    wanted = KindOptions(options.prune).chosen(target)
    workloads = WorkloadOptions(repeats=_REPEATS).workloads(target)
    output = OutputOptions(options.output_dir, overwrite=True)
    check_folder(output)
    display = Display()
    model = ModelOptions(str(demo_model()), threads=options.threads, device="cpu")
    named = in_kinds(named_of(model, display), wanted, Units.AUTO)
    print(f"pruned: {named.kinds.sentence}", flush=True)
    usual = TextOptions()
    half = usual.max_texts // 2
    texts = split(demo_texts(), most=half, held_out=usual.held_out, seed=options.seed)
    words = random_words(named.tokenizer.get_vocab(), half, seed=options.seed)
    texts = replace(texts, calibration=(*texts.calibration, *words))

    from cahp_opt.torch.pipeline.pruning_run import run_pipeline

    applying = Applying(workloads=workloads, seed=options.seed, command=given.line)
    method = SelectionOptions().pair(Recovery.REFIT, embeds=embeds(named))
    plan = PruningPlan(target, method, applying)
    with kept_runs(output.output_dir.resolve(), workloads) as samples:
        report = run_pipeline(named, texts, plan, output, samples=samples, stages=display)
    show(report, output.output_dir)
