"""The options of a whole run. Fields with an option are options of ``cahp`` too, and stand only
here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload
from cahp_opt.runs.columns import ColumnOptions
from cahp_opt.runs.measuring import MeasuringOptions
from cahp_opt.runs.media import Medium
from cahp_opt.runs.media_folders import MediaFolder
from cahp_opt.runs.method import Method
from cahp_opt.runs.names import ObjectiveName, SolverName
from cahp_opt.runs.objective_and_solver import ObjectiveAndSolver
from cahp_opt.runs.options import option
from cahp_opt.runs.recovery import Recovery, Weighting
from cahp_opt.runs.sources import texts_in
from cahp_opt.runs.texts import LineTexts, TableTexts, TextSplit
from cahp_opt.runs.texts import split as split_texts
from cahp_opt.runs.timing_options import TimingOptions
from cahp_opt.stats.pooling import Pooling


@dataclass(frozen=True)
class Reading:
    """How texts become batches."""

    topic: ClassVar[str] = "Texts"

    max_length: int = field(
        default=128,
        metadata=option("--max-length", min=1, help="Maximum number of tokens per text."),
    )
    max_seconds: float = field(
        default=10.0,
        metadata=option(
            "--max-seconds",
            min=0.1,
            metavar="SECONDS",
            help="Maximum number of seconds of a recording; what is longer is cut.",
        ),
    )
    batch_size: int = field(
        default=32,
        metadata=option("--batch-size", min=1, help="Texts, images or recordings per batch."),
    )


@dataclass(frozen=True)
class TextOptions:
    """Which texts a model is calibrated, refitted and judged on, and how they become batches."""

    topic: ClassVar[str] = "Texts"

    text: Path | None = field(
        default=None,
        metadata=option("--text", metavar="FILE", help="Texts, one per line."),
    )
    data: str | None = field(
        default=None,
        metadata=option(
            "--data",
            metavar="SOURCE",
            help="Texts, pairs, labels or conversations: a file .tsv, .csv, .jsonl, .parquet or .txt, or a data "
            "set of the hub, such as owner/name.",
        ),
    )
    columns: ColumnOptions = ColumnOptions()
    subset: str | None = field(
        default=None,
        metadata=option(
            "--subset", metavar="NAME", help="Which of the subsets that a data set of the hub has."
        ),
    )
    split: str | None = field(
        default=None,
        metadata=option(
            "--split", metavar="NAME", help="Split of a data set of the hub. Default: train."
        ),
    )
    images: Path | None = field(
        default=None,
        metadata=option(
            "--images",
            metavar="FOLDER",
            help="Images in place of texts, for models that read them; the name of the folder that an image lies "
            "in is its label.",
        ),
    )
    audio: Path | None = field(
        default=None,
        metadata=option(
            "--audio",
            metavar="FOLDER",
            help="Recordings (WAV) in place of texts, for models that read them; labels as for --images.",
        ),
    )
    max_texts: int = field(
        default=2000,
        metadata=option(
            "--max-texts",
            min=1,
            help="Maximum number of texts, images or recordings to calibrate and refit on.",
        ),
    )
    held_out: int = field(
        default=256,
        metadata=option(
            "--held-out",
            min=0,
            help="Held-out texts for evaluation (at most a fifth of all); never calibrated or refitted on.",
        ),
    )
    reading: Reading = Reading()
    pooling: Pooling | None = field(
        default=None,
        metadata=option(
            "--pooling",
            help="How the model embeds texts, if it does. Default: as the files of "
            "sentence-transformers beside it say, otherwise the mean over all tokens.",
        ),
    )

    @property
    def given(self) -> bool:
        """Whether there are any texts, images or recordings."""
        return any(each is not None for each in (self.text, self.data, self.images, self.audio))

    @property
    def medium(self) -> Medium:
        """What the examples are."""
        if self.images is not None:
            return Medium.IMAGE
        return Medium.TEXT if self.audio is None else Medium.SOUND

    def read(self, seed: int) -> TextSplit:
        """The texts, images or recordings.

        Args:
            seed: of the shuffle.

        Raises:
            ValueError: if there is not exactly one file or folder, or it cannot be understood.
            OSError: if it cannot be read.
        """
        sources = (self.text, self.data, self.images, self.audio)
        if sum(each is not None for each in sources) != 1:
            raise ValueError(
                "give the texts either as `--text FILE` or as `--data SOURCE`, or in their place images as "
                "`--images FOLDER` or recordings as `--audio FOLDER`."
            )
        found: LineTexts | TableTexts | MediaFolder
        if self.text is not None:
            found = LineTexts(self.text)
        elif self.data is not None:
            found = texts_in(self.data, self.columns, subset=self.subset, split=self.split)
        else:
            found = MediaFolder(self.images or self.audio or "", self.medium)
        taken = split_texts(found, most=self.max_texts, held_out=self.held_out, seed=seed)
        return replace(taken, notes=tuple(found.notes), medium=self.medium)


@dataclass(frozen=True)
class SelectionOptions:
    """How the units are chosen; what is not given depends on the recovery and the model."""

    topic: ClassVar[str] = "Selection"

    method: str | None = field(
        default=None,
        metadata=option(
            "--method",
            metavar="NAME",
            help="A method as published, such as kwon or michel, or your own `module:Class`; docs/methods.md lists "
            "them. Default: the objective and the solver below.",
        ),
    )
    objective: ObjectiveName | None = field(
        default=None,
        metadata=option(
            "--objective",
            help="Objective. Default: gauss-newton with --recovery none; otherwise explained-output, or "
            "explained-variance for models that embed texts by pooling all tokens (and for statistics "
            "without sensitivity).",
        ),
    )
    solver: SolverName | None = field(
        default=None,
        metadata=option(
            "--solver",
            help="Solver. Default: dynamic-program for objectives that are sums over blocks, auto "
            "otherwise.",
        ),
    )
    time_limit: float | None = field(
        default=None,
        metadata=option(
            "--time-limit", metavar="SECONDS", help="Seconds that the solver may take."
        ),
    )
    seed: int = field(
        default=0, metadata=option("--seed", min=0, help="Seed of every random choice.")
    )

    def pair(self, recovery: Recovery, *, embeds: bool) -> ObjectiveAndSolver:
        """The objective and the solver, as :meth:`ObjectiveAndSolver.suiting` completes them."""
        return ObjectiveAndSolver.suiting(recovery, self.objective, self.solver, embeds=embeds)


@dataclass(frozen=True)
class RecoveryOptions:
    """How the sliced model gets back what it lost, where there are texts."""

    topic: ClassVar[str] = "Recovery"

    recovery: Recovery = field(
        default=Recovery.REFIT,
        metadata=option(
            "--recovery",
            help="How the sliced model gets back what it lost: none; mask-tuning, a factor for "
            "every head and neuron; refit, least squares; finetune, the refit and then training towards the unpruned model (and on labels).",
        ),
    )
    epochs: int = field(
        default=1,
        metadata=option("--epochs", min=1, help="Epochs of --recovery finetune."),
    )
    learning_rate: float = field(
        default=5e-5,
        metadata=option(
            "--learning-rate", min=1e-9, help="Highest learning rate of --recovery finetune."
        ),
    )
    weighting: Weighting = field(
        default=Weighting.AUTO,
        metadata=option(
            "--weighting",
            help="How much each token counts in the refit: sensitivity, by the gradient of the output; "
            "equal, for models too large for gradients too; or auto: equal where an embedding is made of all tokens.",
        ),
    )
    feed_forward: bool = field(
        default=True,
        metadata=option(
            "--feed-forward/--no-feed-forward",
            help="Whether the refit fits the feed-forward parts too; it repairs more and takes several "
            "times as long.",
        ),
    )
    stream_memory: float = field(
        default=3.0,
        repr=False,  # results do not depend on it
        metadata=option(
            "--stream-memory",
            min=0,
            metavar="GIB",
            help="Memory for the residual streams that calibration and recovery remember, in GiB; over texts beyond it the "
            "layers run again from the first. `--dry-run` shows what that costs.",
        ),
    )

    @property
    def stream_bytes(self) -> int:
        """The bytes of residual streams to remember."""
        return int(self.stream_memory * 2**30)


@dataclass(frozen=True)
class OutputOptions:
    """Where the pruned model goes."""

    topic: ClassVar[str] = "Output"

    output_dir: Path = field(
        default=Path("pruned"),
        metadata=option("--output-dir", metavar="DIR", help="Folder to write; new or empty."),
    )
    overwrite: bool = field(
        default=False,
        metadata=option(
            "--overwrite",
            help="Replace the model that an earlier run wrote to the output folder; everything else in "
            "it stays.",
        ),
    )


@dataclass(frozen=True)
class Applying:
    """How a selection is applied.

    Args:
        recovery: how the sliced model is repaired.
        workloads: the workloads that the sliced model is timed on, at least one.
        reading: how texts become batches.
        seed: of every random choice.
        command: what was typed, for the report; empty for nothing.
    """

    recovery: RecoveryOptions = RecoveryOptions()
    workloads: tuple[Workload, ...] = (Workload(),)
    reading: Reading = Reading()
    seed: int = 0
    command: str = ""


@dataclass(frozen=True)
class PruningPlan:
    """The options of a whole run, beside the model and the texts.

    Args:
        target: the goals and limits.
        method: how to choose.
        applying: how to apply the choice; its seed is that of the choice too.
        time_limit: seconds that a solver may take; None for no limit.
        rounds: maximum number of sliced models to time while looking for one that meets a latency goal.
        measuring: the number of examples for the statistics that the objective needs.
    """

    target: Target
    method: Method
    applying: Applying = Applying()
    time_limit: float | None = None
    rounds: int = TimingOptions.rounds
    measuring: MeasuringOptions = field(default_factory=MeasuringOptions)
