"""How well latency tables predict whole models that nobody measured before.

    python benchmarks/latency/run.py --device cuda
    python benchmarks/latency/run.py --device cpu --models minilm,bert-base --threads 1 --repeats 10
    python benchmarks/latency/run.py --device cpu --models minilm-both --threads 2 --repeats 20 --output FOLDER

For every model, phase and execution: `measure_latency` makes a table, and the dense model and ``--sets``
uneven random keep-sets (of heads, and of groups of neurons where the model has both), none of which the table has seen, are sliced and timed whole in one interleaved
run. The results go to ``<device>.json`` in the output folder after every case; a case that fails is
recorded with its sentence, and the rest goes on. A run with the same output goes on with what is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import transformers
from torch import nn

from benchmarks.latency.models import DTYPES, SHAPES, SIZES, TINY, Shape, Sizes
from benchmarks.machine import device_of, facts, load, slug
from cahp_opt.arrays import Bools
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.provenance import Execution, Phase
from cahp_opt.space import HeadSpace
from cahp_opt.torch import find_prunable, measure_latency, time_models
from cahp_opt.torch.latency.block_times import Timing
from cahp_opt.torch.latency.model_times import device_name, dtype_name
from cahp_opt.torch.slicing.timing_copies import timing_copy

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "latency"
PACKAGES = ("cahp-opt", "torch", "transformers", "numpy")
EXECUTIONS = {"cpu": (Execution.EAGER,), "cuda": (Execution.EAGER, Execution.CUDA_GRAPH)}
REPEATS = {"cpu": 10, "cuda": 30}
GROUP = {"cpu": 10, "cuda": 30}
DENSE = "dense"
LOST_DEVICE = 3
"""The exit code when the device answers no more; a new process may have more luck."""

Row = dict[str, Any]


class Subject:
    """One model on its device, its batches, and its sliced copies, which all its cases share."""

    def __init__(
        self, name: str, shape: Shape, sizes: Sizes, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.name, self.shape, self.sizes, self.dtype = name, shape, sizes, dtype
        self.model = shape.build(sizes, device, dtype)
        self.prunable = find_prunable(self.model, neurons=shape.neurons, unit=shape.unit)
        self.space = self.prunable.space
        self._small: dict[int, nn.Module] = {}

    def batch(self, phase: Phase) -> dict[str, torch.Tensor]:
        """What it is timed on."""
        return self.shape.batch(self.sizes, phase, self.dtype)

    def small(self, number: int, kept: Bools) -> nn.Module:
        """The sliced model of one keep-set; what is not in a block is the dense model's own."""
        if number not in self._small:
            self._small[number] = timing_copy(self.prunable, kept)
        return self._small[number]

    def forget(self) -> None:
        """Drop the sliced models."""
        self._small.clear()


def keep_sets(space: HeadSpace, name: str, number: int) -> list[Bools]:
    """Uneven random keep-sets, from nearly nothing to nearly all kept, other ones for every model."""
    rng = np.random.default_rng([1, zlib.crc32(name.encode())])
    found: list[Bools] = []
    for index in range(number):
        level = (index + rng.random()) / number
        shares = np.clip(level + rng.uniform(-0.4, 0.4, len(space.blocks)), 0, 1)
        counts = np.rint(shares * space.units).astype(int)
        kept = np.zeros(space.n, dtype=np.bool_)
        for where, count in zip(space.slices, counts, strict=True):
            units = np.arange(where.start, where.stop)
            kept[rng.choice(units, count, replace=False)] = True
        found.append(kept)
    return found


def kinds(table: LatencyTable) -> list[Row]:
    """The seconds of every distinct curve, and how many blocks have it."""
    found: dict[tuple[float, ...], list[str]] = {}
    for block, seconds in zip(table.space.blocks, table.seconds, strict=True):
        found.setdefault(tuple(seconds.tolist()), []).append(block.name)
    return [
        {"blocks": len(names), "first": names[0], "seconds": [digits(s) for s in seconds]}
        for seconds, names in found.items()
    ]


def table_row(table: LatencyTable) -> Row:
    """A table as the result file keeps it."""
    told = table.provenance
    return {
        "fixed": digits(table.fixed),
        "least": digits(table.least),
        "dense": digits(table.dense),
        "floor": digits(table.floor),
        "kinds": kinds(table),
        "repeats": told.repeats,
        "spread": digits(told.spread),
        "drift": digits(told.drift),
        "error": digits(told.error),
    }


def set_row(table: LatencyTable, kept: Bools, measured: Timing, dense: Timing) -> Row:
    """One keep-set: predicted and measured, absolute and relative to the dense model of the same run.

    The dense model of the run tells how much the machine changed since the table was measured; relative
    times are free of that.
    """
    counts = table.space.counts(kept)
    predicted = table.predict(counts)
    error = predicted / measured.seconds - 1
    relative = (predicted / table.dense) / (measured.seconds / dense.seconds) - 1
    noise = measured.spread + dense.spread
    return {
        "counts": counts.tolist(),
        "predicted": digits(predicted),
        "measured": digits(measured.seconds),
        "dense": digits(dense.seconds),
        "spread": digits(measured.spread),
        "error": digits(error),
        "relative_error": digits(relative),
        "within_spread": bool(abs(relative) <= noise),
    }


def summary(rows: Sequence[Row]) -> Row:
    """Median, 90 % quantile and maximum of the errors and of the spread over the keep-sets."""
    found: Row = {"sets": len(rows)}
    for name in ("error", "relative_error", "spread"):
        values = np.abs([row[name] for row in rows])
        found[name] = {
            "median": digits(float(np.median(values))),
            "p90": digits(float(np.quantile(values, 0.9))),
            "max": digits(float(values.max())),
        }
    found["within_spread"] = sum(row["within_spread"] for row in rows)
    return found


def digits(value: float) -> float:
    """Five digits of a number."""
    return float(f"{value:.5g}")


def measure(
    subject: Subject,
    phase: Phase,
    execution: Execution,
    *,
    sets: int,
    group: int,
    repeats: int,
    case: Row,
    keep: Callable[[], None],
) -> None:
    """Fill ``case``; ``keep`` is called when there is something worth keeping."""
    batch = subject.batch(phase)
    table = measure_latency(
        subject.prunable,
        batch,
        phase=phase,
        execution=execution,
        repeats=repeats,
    )
    told = table.provenance
    case |= {"batch": told.batch, "length": told.sequence_length, "attention": told.attention}
    case["table"] = table_row(table)
    keep()
    wanted = keep_sets(subject.space, subject.name, sets)
    rows: list[Row] = []
    for start in range(0, sets, group):
        numbers = range(start, min(start + group, sets))
        models = {str(n): subject.small(n, wanted[n]) for n in numbers}
        timings = time_models(
            {DENSE: subject.model, **models},
            batch,
            phase=phase,
            execution=execution,
            repeats=repeats,
        )
        rows += [set_row(table, wanted[n], timings[str(n)], timings[DENSE]) for n in numbers]
        case["sets"], case["summary"] = rows, summary(rows)
        keep()
        del models
        if group < sets:
            subject.forget()


def sentence(error: BaseException) -> str:
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def warm(subject: Subject, device: torch.device, seconds: float = 3.0) -> None:
    """Run a model for a while: a fresh machine is slow until its clocks rise and its pages are in memory."""
    batch, end = subject.batch(Phase.PREFILL), time.perf_counter() + seconds
    inputs = {key: value.to(device) for key, value in batch.items()}
    with torch.inference_mode():
        while time.perf_counter() < end:
            subject.model(**inputs)
            torch.cuda.synchronize(device)


def answers(device: torch.device) -> bool:
    """Whether the device still computes: some errors of CUDA end all work of their process."""
    try:
        return float(torch.ones(8, device=device).sum()) == 8
    except RuntimeError:
        return False


def text(data: Row) -> str:
    """JSON with short lists and records on one line each."""
    return re.sub(
        r"[\[{][^\[\]{}]{,900}[\]}]",
        lambda found: " ".join(found[0].split()),
        json.dumps(data, indent=1),
    )


class Record:
    """The result file."""

    def __init__(self, path: Path, told: Row) -> None:
        self.path, self.cases = path, list[Row]()
        self.data: Row = {
            "kind": "latency",
            "provenance": told,
            "left_out": [],
            "cases": self.cases,
        }
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if any(before["provenance"].get(key) != told[key] for key in ("device", "versions")):
                raise SystemExit(f"{path} is of another machine or other software; move it away")
            self.cases += before["cases"]
            self.data["left_out"] += before["left_out"]
            told["load_before"] = before["provenance"]["load_before"]
            print(f"{len(self.cases)} cases are in {path}", flush=True)
        for case in self.cases:
            if case["outcome"] == "started":
                case |= {"outcome": "failed", "why": "the process ended in the middle"}
        path.parent.mkdir(parents=True, exist_ok=True)

    def has(self, key: Row) -> bool:
        """Whether this case was tried."""
        return any(all(case.get(k) == v for k, v in key.items()) for case in self.cases)

    def leave_out(self, key: Row) -> None:
        """Remember a case that no time was left for."""
        if key not in self.data["left_out"]:
            self.data["left_out"].append(key)

    def keep(self) -> None:
        """Write the file, whole or not at all."""
        self.data["left_out"] = [key for key in self.data["left_out"] if not self.has(key)]
        self.data["provenance"]["load_after"] = load()
        part = self.path.with_suffix(".part")
        part.write_text(text(self.data) + "\n", encoding="utf-8")
        part.replace(self.path)


def line(case: Row) -> str:
    """What a case came to, for the terminal."""
    head = f"{case['model']:16} {case['phase']:8} {case['execution']:11} {case['seconds']:6.1f} s  "
    if case["outcome"] != "measured":
        return f"{head}{case['outcome']}: {case['why']}"
    found, table = case["summary"], case["table"]
    shown = [f"{100 * found['relative_error'][name]:.2f}" for name in ("median", "p90", "max")]
    return (
        f"{head}dense {1e3 * table['dense']:.3f} ms, floor {1e3 * table['floor']:.3f} ms, "
        f"error {' / '.join(shown)} % (absolute {100 * found['error']['median']:.2f} %), "
        f"spread {100 * found['spread']['median']:.2f} %"
    )


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--models", default=",".join(SHAPES), help="names, separated by commas")
    parser.add_argument(
        "--executions", help="eager, compiled, cuda_graph; by default those without a compiler"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--sets", type=int, default=30, help="keep-sets per case")
    parser.add_argument("--group", type=int, help="as many in memory and in one run")
    parser.add_argument("--repeats", type=int, help="timed runs of everything")
    parser.add_argument("--examples", type=int, help="texts or images of a prefill batch")
    parser.add_argument("--tokens", type=int, help="tokens of each of them")
    parser.add_argument("--context", type=int, help="tokens in the cache while decoding")
    parser.add_argument("--minutes", type=float, help="start no case that would end later")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    given = parser.parse_args(arguments)
    given.models = given.models.split(",")
    known = {**SHAPES, **TINY}
    if unknown := sorted(set(given.models) - known.keys()):
        parser.error(f"`--models` names {unknown}; there are {', '.join(known)}")
    given.shapes = {name: known[name] for name in given.models}
    if given.sets < 1:
        parser.error(f"`--sets` must be at least 1, got {given.sets}")
    kind = torch.device(given.device).type
    named = given.executions.split(",") if given.executions else EXECUTIONS[kind]
    given.executions = [Execution(name) for name in named]
    given.repeats = given.repeats or REPEATS[kind]
    given.group = given.group or GROUP[kind]
    changed = {k: getattr(given, k) for k in ("examples", "tokens", "context") if getattr(given, k)}
    given.sizes, given.dtype = dataclasses.replace(SIZES[kind], **changed), DTYPES[kind]
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases; 1 if one failed, 3 if the device answers no more."""
    begun = time.perf_counter()
    given = options(arguments)
    device = device_of(given.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    try:
        told = {**facts(device, PACKAGES), "load_before": load()}
        record = Record(given.output / f"{slug(device_name(device))}.json", told)
        return _all(given, device, record, begun)
    finally:
        torch.set_num_threads(threads)


def _all(given: argparse.Namespace, device: torch.device, record: Record, begun: float) -> int:
    durations: list[float] = []
    for name, shape in given.shapes.items():
        subject: Subject | None = None
        for phase in shape.phases:
            for execution in given.executions:
                key: Row = {"model": name, "phase": phase.value, "execution": execution.value}
                if record.has(key):
                    continue
                if given.minutes is not None:
                    left = 60 * given.minutes - (time.perf_counter() - begun)
                    if left < (float(np.median(durations)) if durations else 0):
                        record.leave_out(key)
                        continue
                case = {
                    **key,
                    "dtype": dtype_name(given.dtype),
                    "outcome": "started",
                }
                record.cases.append(case)
                record.keep()
                start = time.perf_counter()
                try:
                    if subject is None:
                        subject = Subject(name, shape, given.sizes, device, given.dtype)
                        if device.type == "cuda" and not durations:
                            warm(subject, device)
                    case["unit"] = subject.space.blocks[0].unit.value
                    measure(
                        subject,
                        phase,
                        execution,
                        sets=given.sets,
                        group=given.group,
                        repeats=given.repeats,
                        case=case,
                        keep=record.keep,
                    )
                    case["outcome"] = "measured"
                except Exception as error:  # any: the others are to run all the same
                    case |= {"outcome": "failed", "why": sentence(error)}
                case["seconds"] = round(time.perf_counter() - start, 1)
                durations.append(case["seconds"])
                record.keep()
                print(line(case), flush=True)
                if not answers(device):
                    print(f"{device} answers no more", flush=True)
                    return LOST_DEVICE
        del subject
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    record.keep()
    bad = sum(case["outcome"] == "failed" for case in record.cases)
    out = ", ".join(" ".join(key.values()) for key in record.data["left_out"])
    print(f"{len(record.cases)} cases, {bad} failed, left out: {out or 'none'}; {record.path}")
    return int(bad > 0)


if __name__ == "__main__":
    quiet: Any = transformers.utils.logging
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    logging.getLogger("cahp_opt").setLevel(logging.ERROR)
    sys.exit(main())
