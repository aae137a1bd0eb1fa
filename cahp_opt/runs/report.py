"""The report of a run: a plain record, saved as JSON and shown as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cahp_opt.costs.checks import TOLERANCE, Check
from cahp_opt.costs.provenance import Provenance
from cahp_opt.files.records import PathLike, read_json, reading, write_json
from cahp_opt.runs.media import Medium
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.text_counts import TextCounts
from cahp_opt.selection import Selection

_KIND, _VERSION = "cahp-report", 1
REPORT_FILE = "report.json"
"""Name of the report in the folder of a pruned model."""


@dataclass(frozen=True)
class FidelityReport:
    """Closeness to the dense model on texts that nothing was fitted on.

    Args:
        examples: texts compared.
        before: figures by name, right after slicing.
        after: the same after the recovery; None without one.
        pooling: how hidden states became the embeddings that were compared; None for other outputs.
    """

    examples: int
    before: Mapping[str, float]
    after: Mapping[str, float] | None = None
    pooling: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything that is known at the end of a run.

    Args:
        model: name of the model.
        selection: what is kept and why, with the rounds in which it was found.
        latency: by name of the workload, what the saved model takes, predicted and measured.
        where: by name of the workload, where and how that was measured.
        goals: by name of the budget's table, the times that were limited, as the saved model takes them.
        fidelity: closeness to the dense model; None without held-out texts.
        parameters: number of weights before and after.
        mask_difference: largest difference of an output between the gated and the sliced model.
        calibration_texts: texts calibrated and refitted on.
        seconds: seconds of every stage.
        files: files written, with their bytes.
        notes: sentences that the user should read.
        recovery: what was done for the sliced model.
        counts: how many texts and tokens of the data were read, held-out ones too, and how many not.
        medium: what the model was calibrated and judged on.
        seed: of every random choice.
        command: what was typed; empty where the run was started otherwise.
    """

    model: str
    selection: Selection
    latency: Mapping[str, Check]
    where: Mapping[str, Provenance]
    goals: Mapping[str, Check]
    fidelity: FidelityReport | None
    parameters: tuple[int, int]
    mask_difference: float
    calibration_texts: int = 0
    seconds: Mapping[str, float] = field(default_factory=lambda: dict[str, float]())
    files: Mapping[str, int] = field(default_factory=lambda: dict[str, int]())
    notes: tuple[str, ...] = ()
    recovery: Recovery = Recovery.NONE
    counts: TextCounts = TextCounts()
    medium: Medium = Medium.TEXT
    seed: int = 0
    command: str = ""

    def save(self, path: PathLike) -> None:
        """Write the report as JSON; NaN and infinity become null."""
        body = {
            "model": self.model,
            "mask_difference": self.mask_difference,
            "reloaded": True,  # without the same outputs as the sliced model there is no report
            "selection": _chosen(self.selection),
            "latency": {
                name: _latency(found, self.where[name]) for name, found in self.latency.items()
            },
            "goals": {
                name: vars(check) | {n: getattr(check, n) for n in ("ratio", "error", "over")}
                for name, check in self.goals.items()
            },
            "fidelity": None if self.fidelity is None else vars(self.fidelity),
            "parameters": list(self.parameters),
            "calibration_texts": self.calibration_texts,
            "read": vars(self.counts),
            "seconds": dict(self.seconds),
            "files": dict(self.files),
            "notes": list(self.notes),
            "recovery": self.recovery.value,
            "medium": self.medium.value,
            "seed": self.seed,
            "command": self.command,
        }
        write_json(path, _KIND, _VERSION, _finite(body))

    @staticmethod
    def read(path: PathLike) -> dict[str, Any]:
        """The figures of a saved report, as plain data.

        Raises:
            RecordError: if the file is not a report.
            OSError: if it cannot be read.
        """
        with reading(path):
            return read_json(path, _KIND, _VERSION)


def verdict(check: Check) -> str:
    """Whether a measured time keeps to its limit, in words."""
    over = check.over
    if over is None:
        return ""
    if over <= 0:
        return f"met, {-100 * over:.1f} % below"
    if over <= TOLERANCE:
        return f"met within {100 * TOLERANCE:.0f} %, {100 * over:.1f} % above"
    within = ", which is within the spread" if over <= check.spread else ""
    return f"missed by {100 * over:.1f} %{within}"


def _chosen(selection: Selection) -> dict[str, Any]:
    """The selection without the order of the neurons, which its own file has, and what every block keeps."""
    space, portions = selection.space, selection.space.portions(selection.counts)
    return selection.to_json() | {
        "blocks": space.unordered().to_json(),
        "portions": {
            block.name: part._asdict() for block, part in zip(space.blocks, portions, strict=True)
        },
        "gap": selection.gap,
    }


def _latency(found: Check, where: Provenance) -> dict[str, Any]:
    return {
        "dense": found.dense_measured,
        "sliced": found.measured,
        "spread": found.spread,
        "predicted_dense": found.dense_predicted,
        "predicted": found.predicted,
        "device": where.device,
        "dtype": where.dtype,
        "threads": where.threads,
        "batch_size": where.batch,
        "sequence_length": where.sequence_length,
        "phase": where.phase.value,
        "execution": where.execution.value,
        "versions": dict(where.versions),
        "speed_up": found.speed_up,
        "error": found.error,
    }


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(k): _finite(v) for k, v in data.items()}  # pyright: ignore
    if isinstance(data, (list, tuple)):
        return [_finite(v) for v in data]  # pyright: ignore
    return None if isinstance(data, float) and not math.isfinite(data) else data
