"""``cahp demo``: the whole way with a model and texts that are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cahp_opt.cli.display import Display
from cahp_opt.cli.loading import embeds, named_of
from cahp_opt.cli.options import Latency, Seed, Threads, goals_of, target_of
from cahp_opt.cli.outputs import check_folder, kept_runs, show
from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload, workloads_for
from cahp_opt.files.belongings import Belongings
from cahp_opt.runs.method import (
    Method,
)
from cahp_opt.runs.plan import Applying, OutputOptions, Plan
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.texts import split


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

    target = target_of(Target(goals_of(latency)), "0.8")
    workloads = workloads_for(target.latencies, (), Workload())
    overwrite = Belongings.of(output_dir).recognised
    check_folder(output_dir, overwrite)
    display = Display()
    named = named_of(str(demo_model()), threads, "cpu", None, display)
    texts = split(demo_texts(), most=2000, held_out=256, seed=seed)

    from cahp_opt.torch.pipeline.pruning_run import run_pipeline

    with kept_runs(output_dir.resolve(), workloads) as samples:
        report = run_pipeline(
            named,
            texts,
            Plan(
                target,
                Method.suiting(Recovery.REFIT, seed=seed, embeds=embeds(named)),
                Applying(workloads=workloads, seed=seed),
            ),
            OutputOptions(output_dir, overwrite),
            samples=samples,
            stages=display,
        )
    show(report, output_dir)
