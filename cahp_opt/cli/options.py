"""Options that several commands share, and what they are made into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cahp_opt.cli.notes import note
from cahp_opt.cli.unused_options import Given
from cahp_opt.costs.goals import (
    Goal,
    LatencyGoal,
    ResourceGoal,
    asked_latency,
)
from cahp_opt.costs.provenance import Execution
from cahp_opt.costs.quantities import SHORTHANDS
from cahp_opt.costs.target import Target
from cahp_opt.identity import coverage_note
from cahp_opt.runs.method import (
    ObjectiveName,
    Precision,
    SolverName,
    Units,
)
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.runs.texts import LineTexts, TableTexts, TextSplit, split
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.pooling import Pooling

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


def jobs_of(number: int) -> int:
    if number < 1 and number != -1:
        raise ValueError(f"`--jobs` must be at least 1, or -1 for one per core, got {number}.")
    return number


def given_on(context: typer.Context) -> Given:
    """What the command line said; options that are idle beside others are refused or noted here."""
    given = Given.of(context)
    note(given.check())
    return given


def texts_of(
    text: Path | None, data: Path | None, max_texts: int, held_out: int, seed: int
) -> TextSplit:
    if (text is None) == (data is None):
        raise ValueError("give the texts either as `--text FILE` or as `--data TSV`.")
    examples = LineTexts(text) if text is not None else TableTexts(data or "")
    return split(examples, most=max_texts, held_out=held_out, seed=seed)


def goals_of(
    latency: Sequence[str] | None,
    parameters: str | None = None,
    memory: str | None = None,
    kv_cache: str | None = None,
) -> tuple[Goal, ...]:
    goals: list[Goal] = [asked_latency(text) for text in latency or ()]
    for name, text in zip(SHORTHANDS, (parameters, memory, kv_cache), strict=True):
        if text is not None:
            goals.append(ResourceGoal.parse(name, text))
    return tuple(goals)


def target_of(target: Target, default: str) -> Target:
    """The target, with a default latency if nothing limits it."""
    if target.goals or target.heads is not None or target.maximum is not None:
        return target
    return replace(target, goals=(LatencyGoal.parse(default),))


def stats_of(path: Path) -> HeadStats:
    """Statistics, with a note about what their record leaves open."""
    measured = HeadStats.load(path)
    open_question = coverage_note("the record of the statistics", measured.model)
    note([open_question] if open_question else [])
    return measured
