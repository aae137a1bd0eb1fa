"""Heads and feed-forward neurons under one latency: how close a pruned classifier stays, without training.

    python benchmarks/both_kinds/run.py --data DATA --checkpoint MODEL
    python benchmarks/both_kinds/run.py --data DATA --shares 0.5 --methods both,kwon --draws 1

``DATA`` is a folder of tables, and ``MODEL`` a classifier for it; without one
all-MiniLM-L6-v2 is fine-tuned first. Every method gets the same draws of calibration texts and the same latency table, which is
measured here, and is judged on the whole test set: the mean KL divergence from the unpruned model, the accuracy, and the
time of the sliced model against that of the unpruned one, measured in turns. Prints the means over the draws and writes
every draw to ``benchmarks/results/both_kinds/<name of DATA>.json``. Each result is on disk before the next one: what was
interrupted goes on, a run of some methods, shares or draws adds to what is there, and a new method costs only its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from torch import Tensor, nn

from benchmarks.accuracy.data import Data, read
from benchmarks.accuracy.training import fine_tuned
from benchmarks.both_kinds.draws import Draw, Source
from benchmarks.both_kinds.methods import METHODS
from benchmarks.both_kinds.report import table
from benchmarks.machine import described, facts, load
from cahp_opt import HeadSpace, LatencyTable
from cahp_opt.arrays import Bools
from cahp_opt.files.store import Row, Store
from cahp_opt.torch import bypass_empty, find_prunable, measure_latency, time_models
from cahp_opt.torch.evaluation.evaluation import Judge
from cahp_opt.torch.slicing.slicing import slice_found
from cahp_opt.torch.texts.encoding import timing_batch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "both_kinds"
SHARES, DRAWS = "0.7,0.6,0.5,0.4", 3
ONLY: dict[str, tuple[float, ...]] = {
    "heads": (0.7,),
    "kwon": (0.7, 0.5),
    **dict.fromkeys(("neurons", "even", "kwon-refit", "magnitude", "random"), (0.5,)),
}
"""Methods that are compared at some shares of the time only: heads alone reach no less, and the others would
take most of the time that a run takes."""
PACKAGES = ("cahp-opt", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Settings:
    """What is the same for all methods.

    Args:
        texts: calibration texts of a draw.
        longest: tokens per text.
        neuron_group: neurons in a group; None for the library's choice.
        timed: texts of the workload that is timed, each of 128 tokens or as many as the model has positions.
        repeats: timed runs.
    """

    texts: int = 1536
    longest: int = 128
    neuron_group: int | None = None
    timed: int = 8
    repeats: int = 20


class Cell(NamedTuple):
    """One result: a method within a share of the time, on one draw of the texts."""

    draw: int
    share: float
    method: str


class Bench:
    """One data set and one model, and all that is measured on them.

    Args:
        data: the data set.
        checkpoint: folder of the fine-tuned model.
        settings: what is the same for all.
        store: where results are kept.
    """

    def __init__(self, data: Data, checkpoint: Path, settings: Settings, store: Store) -> None:
        self.data, self.settings, self.store = data, settings, store
        loader: Any = transformers.AutoModelForSequenceClassification
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self.model: nn.Module = loader.from_pretrained(checkpoint).float().eval()
        self.source = Source(data, self.model, tokenizer, settings.longest)
        self.grouped = find_prunable(self.model, neuron_group=settings.neuron_group)
        self._base = (_digest_of(self.model.state_dict()), data.digest, repr(settings))
        self._drawn: Draw | None = None

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """What is timed."""
        return timing_batch(self.model, batch_size=self.settings.timed, sequence_length=None)

    @cached_property
    def table(self) -> LatencyTable:
        """The time of every block at every number of units, on this machine."""
        path = self.store.path("latency", (self._base, self.store.device))

        def measure(to: Path) -> None:
            measure_latency(self.grouped, self.batch, repeats=self.settings.repeats).save(to)

        return LatencyTable.load(self.store.file(path, measure))

    @cached_property
    def judge(self) -> Judge:
        """Judges on the whole test set."""
        return Judge(self.model, self.source.encoded(self.data.test, 128, 0))

    def dense(self) -> Row:
        """The accuracy of the unpruned model."""
        return self.store.row(
            "dense", self._base, lambda: {"test": self.judge(self.model).value("accuracy")}
        )

    def draw(self, seed: int) -> Draw:
        """The draw of that seed; only the last one is kept."""
        if self._drawn is None or self._drawn.seed != seed:
            self._drawn = Draw(self.source, seed, self.settings.texts, self.table, self.grouped)
        return self._drawn

    def result(self, cell: Cell) -> Row | None:
        """The row of a cell, if it is done."""
        return self.store.peek("cells", self._key(cell))

    def work(self, cell: Cell) -> Row:
        """The row of a cell, which is done unless it is there."""
        return self.store.row("cells", self._key(cell), lambda: self._done(cell))

    def _key(self, cell: Cell) -> object:
        return self._base, self.table.to_json(), cell

    def _done(self, cell: Cell) -> Row:
        method, draw = METHODS[cell.method], self.draw(cell.draw)
        began = time.monotonic()
        chosen = method.choose(draw, cell.share)
        small = slice_found(chosen.dense, chosen.kept)
        sliced = time.monotonic()
        method.repair(small, draw, chosen)
        mended = time.monotonic()
        bypass_empty(small.model)
        models = {"unpruned": self.model, "pruned": small.model}
        times = time_models(models, self.batch, repeats=self.settings.repeats)
        space = chosen.dense.space
        counts = space.counts(chosen.kept).tolist()
        predicted = self.table.predict(counts) / self.table.dense
        after = self.judge(small.model)
        return {
            **cell._asdict(),
            "kl": after.value("kl"),
            "accuracy": after.value("accuracy"),
            "predicted": predicted,
            "measured": times["pruned"].seconds / times["unpruned"].seconds,
            "spread": max(timing.spread for timing in times.values()),
            **_left(space, chosen.kept),
            "seconds": {"choose": round(sliced - began, 2), "repair": round(mended - sliced, 2)},
            "load": load(),
        }


def _left(space: HeadSpace, kept: Bools) -> Row:
    """Heads and neurons that stay in every layer."""
    pairs = zip(space.counts(kept).tolist(), space.blocks, strict=True)
    found: dict[str, list[int]] = {"heads": [], "neurons": []}
    for count, block in pairs:
        width = 1 if block.order is None else len(block.order) // block.units
        found["heads" if block.unit.of_attention else "neurons"].append(count * width)
    return found


def cells(methods: Sequence[str], shares: Sequence[float], draws: int) -> list[Cell]:
    """All cells, draw by draw."""
    return [
        Cell(draw, share, method)
        for draw in range(draws)
        for share in shares
        for method in methods
        if share in ONLY.get(method, (share,))
    ]


def record(bench: Bench, rows: Sequence[Row], checkpoint: Path | None) -> Row:
    """All that is done, with where it was done."""
    dropped = ("key", "device")
    return {
        "benchmark": "heads and neurons",
        "data": bench.data.name,
        "model": checkpoint.name if checkpoint else "all-MiniLM-L6-v2, fine-tuned here",
        "settings": asdict(bench.settings),
        "test": len(bench.data.test),
        "dense": {"accuracy": bench.dense()["test"]},
        "table": {
            "seconds": bench.table.dense,
            "floor": bench.table.floor / bench.table.dense,
            "remarks": list(bench.table.remarks),
        },
        "provenance": facts(torch.device("cpu"), PACKAGES),
        "names": {name: method.name for name, method in METHODS.items()},
        "rows": [{k: v for k, v in row.items() if k not in dropped} for row in rows],
    }


def _digest_of(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data", type=Path, required=True, help="a folder of tables")
    options.add_argument("--checkpoint", type=Path, help="of a fine-tuned model; made if not given")
    options.add_argument("--methods", default=",".join(METHODS))
    options.add_argument("--shares", default=SHARES, help="of the unpruned time")
    options.add_argument("--draws", type=int, default=DRAWS, help="of the calibration texts")
    options.add_argument("--texts", type=int, default=Settings.texts, help="in a draw")
    options.add_argument("--neuron-group", type=int, help="neurons in a group")
    options.add_argument("--repeats", type=int, default=Settings.repeats, help="timed runs")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--cache", type=Path, default=ROOT / "out" / "both_kinds")
    options.add_argument("--output", type=Path, help="file; one for the data set if not given")
    given = options.parse_args(arguments)
    unknown = sorted(set(given.methods.split(",")) - set(METHODS))
    if unknown:
        options.error(f"--methods has {unknown[0]!r}; it may have {', '.join(METHODS)}")
    return given


def main(arguments: Sequence[str] | None = None, tell: Callable[[str], None] = print) -> int:
    """Run, print the table, and write the record."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads)
    data = read(given.data)
    checkpoint = given.checkpoint or fine_tuned(data, given.cache)
    settings = Settings(
        texts=min(given.texts, len(data.train)),
        neuron_group=given.neuron_group,
        repeats=given.repeats,
    )
    bench = Bench(data, checkpoint, settings, Store(given.cache, described(torch.device("cpu"))))
    shares = [float(share) for share in given.shares.split(",")]
    todo = cells(given.methods.split(","), shares, given.draws)
    for number, cell in enumerate(todo, start=1):
        row = bench.work(cell)
        told = {name: round(row[name], 4) for name in ("kl", "accuracy", "measured")}
        print(f"{number} of {len(todo)}: {cell} {told}", file=sys.stderr, flush=True)
    known = sorted({*map(float, SHARES.split(",")), *shares}, reverse=True)
    there = [bench.result(cell) for cell in cells([*METHODS], known, max(given.draws, DRAWS))]
    rows = [row for row in there if row is not None]
    path = given.output or RESULTS / f"{data.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = record(bench, rows, given.checkpoint)
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for line in table(rows, found["names"]):
        tell(line)
    tell(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
