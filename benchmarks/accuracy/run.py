"""How much accuracy each way of selecting keeps, at one number of units or one latency.

    python benchmarks/accuracy/run.py --data ../shared/data/sst5 --checkpoint ../shared/models/minilm-sst5
    python benchmarks/accuracy/run.py --data SetFit/sst5 --recovery none,refit --budgets 24,0.8

Every way of selecting gets the same calibration texts, drawn anew for every seed, and the same budget; the
sliced model is judged as it is, after a refit on those texts, and after one epoch on the training set with
or without the refit, on the whole dev and test sets. Without a checkpoint all-MiniLM-L6-v2 is fine-tuned
first. All results lie in the cache as soon as they are there: a run goes on where another one stopped, and
several processes may share the work (``--shard 0/2`` and ``--shard 1/2``, each in its own process).

With ``--device cuda`` all of it runs on a GPU. What the model takes there is another matter: with ``--table`` the
shares of the time are those of the device where that table was measured. No name of a result depends on
the device, so a cache may be filled in one place and collected (``--collect``, with the same table) in
another; every row tells where it was made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks.accuracy.cost import Cost, counted
from benchmarks.accuracy.data import Data, read
from benchmarks.accuracy.figures import EARLIER
from benchmarks.accuracy.judging import Judge
from benchmarks.accuracy.methods import METHODS, Measured, Needs, Task
from benchmarks.accuracy.training import CACHE, Recipe, fine_tuned
from benchmarks.machine import described, device_of, facts, load
from cahp_opt.arrays import Bools
from cahp_opt.costs.goals import LatencyGoal
from cahp_opt.costs.latency_table import LatencyTable
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.target import Target
from cahp_opt.files.records import whole_file
from cahp_opt.files.store import Busy, Row, Store, digest
from cahp_opt.runs.recovery import Recovery
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch import (
    TokenWeights,
    find_attention,
    finetune,
    measure_latency,
    refit,
    slice_heads,
)
from cahp_opt.torch.latency.model_times import device_name
from cahp_opt.torch.running.batches import batch_size
from cahp_opt.torch.texts.encoding import encode, timing_batch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy"
PACKAGES = ("cahp-opt", "torch", "transformers", "numpy", "scikit-learn", "ortools", "accelerate")


class Repair(NamedTuple):
    """What is done to a sliced model, and the recovery that the units are chosen for."""

    recovery: Recovery
    refit: bool = False
    epoch: bool = False


RECOVERIES = {
    "none": Repair(Recovery.NONE),
    "refit": Repair(Recovery.REFIT, refit=True),
    "1-epoch": Repair(Recovery.FINETUNE, epoch=True),
    "refit+1-epoch": Repair(Recovery.FINETUNE, refit=True, epoch=True),
}
BUDGETS = "24,36,18,54,11,6,0.9,0.8,0.7"
URGENT = {
    "methods": (
        "default",
        "seed-method",
        "explained-variance",
        "gauss-newton",
        "michel",
        "random",
    ),
    "budgets": ("24", "18", "0.8"),
}
"""What is compared without training before all else, for when time is short."""
METHODS_FILE = "benchmarks/accuracy/methods.py"
CHOOSING = ("cahp_opt/runs/names.py", "cahp_opt/objectives", "cahp_opt/solvers", METHODS_FILE)
"""What decides which units are chosen: with other code they are chosen again."""
REFITTING = tuple(
    f"cahp_opt/torch/{name}.py"
    for name in ("refitting", "regression", "token_weights", "finetuning")
)
"""What decides how good a sliced model becomes. Results of older code are kept, and the record tells."""


class Limit(NamedTuple):
    """What a selection has to keep to: a number of units, or a share of the unpruned time."""

    text: str

    @property
    def timed(self) -> bool:
        """Whether it is about time."""
        return "." in self.text

    def target(self, minimum: int) -> Target:
        """As the library takes it, with at least so many units in every block."""
        if self.timed:
            return Target((LatencyGoal(ratio=float(self.text)),), minimum=minimum)
        return Target(heads=int(self.text), minimum=minimum)


class Cell(NamedTuple):
    """One figure of the tables."""

    method: str
    limit: Limit
    seed: int
    recovery: str


@dataclass(frozen=True)
class Settings:
    """Everything that is the same for all methods.

    Args:
        texts: calibration texts, which the refit sees too.
        longest: tokens per text.
        minimum: units kept per block, at least.
        rate: learning rate of the epoch.
        distillation: share of the distance to the dense model in its loss.
        timing: texts and tokens of the workload that is timed.
        repeats: timed runs.
    """

    texts: int = 4096
    longest: int = 64
    minimum: int = 0
    rate: float = 3e-5
    distillation: float = 0.5
    timing: tuple[int, int] = (8, 64)
    repeats: int = 20


class Bench:
    """One data set and one model, and all that is measured on them.

    Args:
        data: the data set.
        checkpoint: the folder of the fine-tuned model.
        settings: what is the same for all.
        store: where results are kept.
        device: where all of it runs.
        table: a latency table measured before; None to measure one here.
    """

    def __init__(
        self,
        data: Data,
        checkpoint: Path,
        settings: Settings,
        store: Store,
        device: torch.device,
        table: LatencyTable | None = None,
    ) -> None:
        self.data, self.settings, self.store, self.device = data, settings, store, device
        self._given_table = table
        self._checkpoint = checkpoint
        loader: Any = transformers.AutoModelForSequenceClassification
        self.model = loader.from_pretrained(checkpoint).float().eval()
        self._base = (_digest_of(self.model.state_dict()), data.digest, settings.longest)
        self.model.to(device)
        self.space = find_attention(self.model).space
        self.texts = min(settings.texts, len(data.train))
        self._sources = _digest_of_sources(CHOOSING)
        self._refitting = _digest_of_sources(REFITTING)
        self._drawn = dict[int, list[dict[str, Tensor]]]()
        self._weights = dict[int, tuple[TokenWeights, Row]]()

    # -- what is shared ----------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """The model's."""
        return transformers.AutoTokenizer.from_pretrained(self._checkpoint)

    @cached_property
    def judge(self) -> Judge:
        """Judges on the whole dev and test sets."""
        parts = {"dev": self.data.dev, "test": self.data.test}
        return Judge(self.model, {name: self._encode(part, 128, 0) for name, part in parts.items()})

    @cached_property
    def training(self) -> list[dict[str, Tensor]]:
        """The whole training set in batches."""
        return self._encode(self.data.train, 32, 0)

    @cached_property
    def table(self) -> LatencyTable:
        """The latency table of the model: the one that was given, or that of this device."""
        if self._given_table is not None:
            return self._given_table
        where = (device_name(self.device), torch.get_num_threads(), self.settings.timing)
        path = self.store.path("latency", (self._base, where))

        def measure(to: Path) -> None:
            size, length = self.settings.timing
            batch = timing_batch(self.model, batch_size=size, sequence_length=length)
            measure_latency(self.model, batch, repeats=self.settings.repeats).save(to)

        return LatencyTable.load(self.store.file(path, measure))

    def dense(self) -> Row:
        """The accuracies of the unpruned model."""
        return self.store.row("evaluated", (self._base, "dense"), lambda: self.judge(self.model))

    def task(self, cell: Cell) -> Task:
        """What the method is asked."""
        profile = Profile(self.space, {"prefill": self.table}) if cell.limit.timed else None
        target = cell.limit.target(self.settings.minimum)
        recovery = RECOVERIES[cell.recovery].recovery
        return Task(self.space, target, profile, recovery, cell.seed, self.texts)

    def batches(self, seed: int, most: int | None = None) -> list[dict[str, Tensor]]:
        """The calibration texts of a seed, or the first so many of them, in batches."""
        examples = random.Random(seed).sample(self.data.train, self.texts)
        if most is not None:
            return self._encode(examples[:most], 32, seed)
        if seed not in self._drawn:
            size = 32 if self.device.type == "cpu" else 128  # which changes rounding alone
            self._drawn[seed] = self._encode(examples, size, seed)
        return self._drawn[seed]

    def weights(self, seed: int) -> tuple[TokenWeights, Row]:
        """What tokens count in a refit, and its cost; taken once for all cells of a seed."""
        if seed not in self._weights:
            weights, batches = TokenWeights(self.model), self.batches(seed)
            key = self._base, self.texts, seed, [batch_size(batch) for batch in batches[:1]]
            path = self.store.path("weights", key, "pt")

            def make() -> Row:
                with counted(self.model) as cost:
                    for number, batch in enumerate(batches):
                        weights.take(batch, number)
                with whole_file(path) as temporary:
                    torch.save(weights.taken, temporary)
                return cost.told(self.texts)

            row = self.store.row("weighed", key, make, wait=False)
            if path.exists():  # not where the rows come from elsewhere
                weights.taken.update(torch.load(path, map_location=self.device))
            self._weights[seed] = weights, {name: row[name] for name in Cost().told(1)}
        return self._weights[seed]

    def _encode(self, examples: Sequence[Any], size: int, seed: int) -> list[dict[str, Tensor]]:
        batches = encode(
            examples,
            self.tokenizer,
            self.model,
            batch_size=size,
            max_length=self.settings.longest,
            seed=seed,
        )
        return [{name: t.to(self.device) for name, t in batch.items()} for batch in batches]

    # -- one cell ----------------------------------------------------------------------------------

    def measured(self, needs: Needs, seed: int) -> tuple[Measured, Row]:
        """What a method needs, and the row with its cost."""
        key = self._base, self.texts, seed, repr(needs)
        heads = self.store.path("statistics", key, "safetensors")

        def measure() -> tuple[Measured, Cost]:
            self.batches(seed)  # tokenizing is no part of it
            with counted(self.model) as cost:
                found = needs.measure(self.model, lambda most: self.batches(seed, most), seed)
            return found, cost

        def make() -> Row:
            found, cost = measure()
            if found.stats is not None:
                with whole_file(heads) as temporary:
                    found.stats.save(temporary)
            return {"cost": cost.told(self.texts), "path": found.path}

        row = self.store.row("measured", key, make, wait=False)
        if needs.path:
            return Measured(path=row["path"]), row
        # The rows may come from elsewhere, without the statistics.
        self.store.file(heads, lambda to: measure()[0].heads.save(to), wait=False)
        return Measured(HeadStats.load(heads)), row

    def chosen(self, cell: Cell) -> Row:
        """The keep-set of a method, and what it cost to find."""
        task, method = self.task(cell), METHODS[cell.method]
        needs = method.needs(task)

        def make() -> Row:
            free = {"cost": Cost().told(1), "device": self.store.device}
            measured, before = (
                (Measured(), free) if needs is None else self.measured(needs, cell.seed)
            )
            with counted(self.model) as cost:
                selection = method.choose(measured, task)
            return {
                "kept": selection.heads(),
                "status": selection.status.name,
                "calibrate": before["cost"],
                "calibrated_on": before.get("device", EARLIER),
                "solve": cost.told(self.texts),
            }

        return self.store.row("chosen", self._choice_key(cell, task, needs), make, wait=False)

    def evaluated(self, kept: Bools, recovery: str, seed: int) -> Row:
        """How good the model is that keeps these units."""
        return self.store.row(
            "evaluated",
            self._evaluation_key(kept, recovery, seed),
            lambda: self._evaluate(kept, RECOVERIES[recovery], seed),
            wait=False,
        )

    def _evaluate(self, kept: Bools, repair: Repair, seed: int) -> Row:
        judge, costs = self.judge, dict[str, Any]()
        with counted() as cost:
            small = slice_heads(self.model, kept)
        costs["slice"] = cost.told(self.texts)
        if repair.refit:
            batches = self.batches(seed)
            weights, costs["weigh"] = self.weights(seed)
            with counted(self.model, small) as cost:
                refit(small, self.model, batches, weighting=weights)
            costs["refit"] = cost.told(self.texts)
        if repair.epoch:
            batches = self.training
            with counted() as cost, torch.autocast(self.device.type, dtype=torch.bfloat16):
                finetune(
                    small,
                    batches,
                    dense=self.model,
                    learning_rate=self.settings.rate,
                    distillation=self.settings.distillation,
                    seed=seed,
                )
            costs["train"] = cost.told(self.texts)
        return {**judge(small), "costs": costs, "sources": self._refitting}

    # -- keys --------------------------------------------------------------------------------------

    def _choice_key(self, cell: Cell, task: Task, needs: Needs | None) -> object:
        table = self.table.to_json() if cell.limit.timed else None
        asks = cell.recovery if needs is not None and needs.choice is not None else None
        what = (cell.method, cell.limit.text, cell.seed, asks, repr(needs), self.settings.minimum)
        return self._base, self.texts, what, digest(table), self._sources

    def _evaluation_key(self, kept: Bools, recovery: str, seed: int) -> object:
        how: tuple[object, ...] = (recovery,)
        repair = RECOVERIES[recovery]
        if repair.refit or repair.epoch:  # what is not touched does not depend on texts or seed
            how += (self.texts, seed)
        if repair.epoch:
            how += (self.settings.rate, self.settings.distillation)
        return self._base, np.flatnonzero(kept).tolist(), how

    # -- results -----------------------------------------------------------------------------------

    def work(self, cell: Cell) -> None:
        """Do one cell, if it is not done.

        Raises:
            Busy: if another process is doing a part of it.
        """
        kept = self.space.join(self.chosen(cell)["kept"])
        self.evaluated(kept, "none", cell.seed)
        self.evaluated(kept, cell.recovery, cell.seed)

    def result(self, cell: Cell) -> Row | None:
        """The row of a cell; None if it is not done."""
        task = self.task(cell)
        key = self._choice_key(cell, task, METHODS[cell.method].needs(task))
        chosen = self.store.peek("chosen", key)
        if chosen is None:
            return None
        kept = self.space.join(chosen["kept"])
        none, found = (
            self.store.peek("evaluated", self._evaluation_key(kept, recovery, cell.seed))
            for recovery in ("none", cell.recovery)
        )
        if none is None or found is None:
            return None
        counts = self.space.counts(kept)
        figures = ("dev", "test", "kl")
        device, chosen_on = (row.get("device", EARLIER) for row in (found, chosen))
        timed_on = {device, chosen_on, chosen.get("calibrated_on", chosen_on)}
        return {
            "method": cell.method,
            "budget": cell.limit.text,
            "seed": cell.seed,
            "recovery": cell.recovery,
            "device": device,
            "timed_on": sorted(timed_on),
            "counts": counts.tolist(),
            "latency": round(self.table.predict(counts) / self.table.dense, 4),
            **{name: round(found[name], 5) for name in figures},
            "before": {name: round(none[name], 5) for name in figures},
            "cost": {
                "calibrate": chosen["calibrate"],
                "solve": chosen["solve"],
                **found["costs"],
            },
            "sources": found.get("sources", ""),
            "kept": "/".join(
                "".join("01"[int(k)] for k in kept[where]) for where in self.space.slices
            ),
        }


def cells(
    methods: Sequence[str],
    limits: Sequence[Limit],
    recoveries: Sequence[str],
    seeds: int,
    most: int = 10,
) -> list[Cell]:
    """All cells, the most telling first: without training before with it, units before latencies.

    Args:
        methods, limits, recoveries: what to combine.
        seeds: of the methods that do not say how many they want.
        most: seeds of those that do, at most.
    """

    def order(cell: Cell) -> tuple[object, ...]:
        trained = RECOVERIES[cell.recovery].epoch
        first = cell.limit.text == "18" and cell.method in ("default", "seed-method")
        stage = (2 if first else 3) if trained else int(cell.limit.timed)
        late = trained and cell.limit.text != "18"
        return stage, late, limits.index(cell.limit), cell.seed, methods.index(cell.method)

    found = [
        Cell(method, limit, seed, recovery)
        for method in methods
        for limit in limits
        for seed in range(min(METHODS[method].seeds or seeds, most))
        for recovery in recoveries
    ]
    return sorted(found, key=order)


def share(todo: Sequence[Cell], shard: str) -> list[Cell]:
    """The part of the cells that a process does; those of one keep-set stay together."""
    number, of = (int(part) for part in shard.split("/"))
    groups = list(dict.fromkeys(cell[:3] for cell in todo))
    mine = set(groups[number::of])
    return [cell for cell in todo if cell[:3] in mine]


def urgent_first(todo: Sequence[Cell]) -> list[Cell]:
    """The same cells in the order in which they are done, so that the main comparisons stand first."""

    def stage(cell: Cell) -> int:
        trained = RECOVERIES[cell.recovery].epoch
        if trained:
            first = cell.limit.text == "18" and cell.method in ("default", "seed-method")
            return 1 if first and cell.seed < 3 else 2
        urgent = cell.method in URGENT["methods"] and cell.limit.text in URGENT["budgets"]
        return 0 if urgent else 2

    return sorted(todo, key=stage)


def worked(
    bench: Bench, mine: Sequence[Cell], until: float, failed: list[tuple[Cell, Exception]]
) -> Iterator[Cell]:
    """Do the cells, each time the first of those that no other process is doing a part of.

    Args:
        bench: what they are done on.
        mine: the cells.
        until: time of the monotonic clock at which no more are begun.
        failed: gets the cells that cannot be done, and why.

    Yields:
        Each cell when it is done.
    """
    left = list(mine)
    while left and time.monotonic() < until:
        for cell in left:
            try:
                bench.work(cell)
            except Busy:
                continue
            except Exception as error:  # the others may go well, and borrowed time is short
                failed.append((cell, error))
            else:
                yield cell
            left.remove(cell)
            break
        else:
            time.sleep(0.2)


def report(bench: Bench, todo: Sequence[Cell], given: Row) -> Row:
    """The record of all that is done."""
    rows = [row for row in map(bench.result, todo) if row is not None]
    told = [(row["recovery"], row.pop("sources")) for row in rows]
    versions = {sources for recovery, sources in told if RECOVERIES[recovery].refit}
    return {
        "benchmark": "accuracy",
        "data": bench.data.name,
        "model": given["checkpoint"] or "all-MiniLM-L6-v2, fine-tuned here",
        "units": bench.space.units.tolist(),
        "sizes": {part: len(getattr(bench.data, part)) for part in ("train", "dev", "test")},
        "settings": {**asdict(bench.settings), "texts": bench.texts},
        "dense": {name: round(bench.dense()[name], 5) for name in ("dev", "test")},
        "table": {
            "device": bench.table.provenance.device,
            "threads": bench.table.provenance.threads,
            "dense": bench.table.dense,
            "floor": bench.table.floor,
            "remarks": list(bench.table.remarks),
        },
        "provenance": {
            **facts(bench.device, PACKAGES),
            "commit": commit(),
            "load": load(),
        },
        "versions_of_refit": len(versions),
        "missing": len(todo) - len(rows),
        "names": {name: method.name for name, method in METHODS.items()},
        "rows": rows,
    }


def commit() -> str | None:
    """The commit that runs; None outside of a checkout, or without git."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None


def _digest_of(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _digest_of_sources(names: Sequence[str]) -> str:
    paths = [ROOT / name for name in names]
    files = [f for p in paths for f in ([p] if p.is_file() else sorted(p.glob("*.py")))]
    return digest([file.read_bytes() for file in files])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--data", required=True, help="a folder of tables, or a name on the hub")
    options.add_argument(
        "--checkpoint", type=Path, help="of a fine-tuned model; made here if not given"
    )
    options.add_argument("--calibration", type=int, default=Settings.texts, help="texts")
    options.add_argument("--seeds", type=int, default=3, help="draws of the calibration texts")
    options.add_argument("--most-seeds", type=int, default=10, help="of methods that want more")
    options.add_argument("--recovery", default=",".join(RECOVERIES))
    options.add_argument("--budgets", default=BUDGETS, help="units, and shares of the time")
    options.add_argument("--minimum", type=int, default=0, help="units kept in every block")
    options.add_argument("--methods", default=",".join(METHODS))
    options.add_argument("--rate", type=float, default=Settings.rate, help="of the epoch")
    options.add_argument("--distillation", type=float, default=Settings.distillation)
    options.add_argument("--repeats", type=int, default=Settings.repeats, help="timed runs")
    options.add_argument("--output", type=Path, help="file; one for the data set if not given")
    options.add_argument("--cache", type=Path, default=CACHE)
    options.add_argument("--device", default="cpu", help="such as cuda")
    options.add_argument("--table", type=Path, help="what `cahp latency` wrote")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--minutes", type=float, default=math.inf, help="then begin nothing more")
    options.add_argument("--shard", default="0/1", help="this part of the work, of so many")
    options.add_argument("--collect", action="store_true", help="only write what is there")
    given = options.parse_args(arguments)
    for name, known in (("methods", METHODS), ("recovery", RECOVERIES)):
        unknown = sorted(set(getattr(given, name).split(",")) - set(known))
        if unknown:
            options.error(f"--{name} has {unknown[0]!r}; it may have {', '.join(known)}")
    return given


def prefill_of(path: Path) -> LatencyTable:
    """The table of prefill in a profile that ``cahp latency`` wrote, or a table saved by itself."""
    tables = Profile.load(path).latency
    if "prefill" not in tables:
        raise SystemExit(f"{path} has no workload `prefill`, only {', '.join(tables)}")
    return tables["prefill"]


def main(arguments: Sequence[str] | None = None, tell: Callable[[str], None] = print) -> int:
    """Run, and write the record."""
    given, started = _parse(arguments), time.monotonic()
    torch.set_num_threads(given.threads)
    torch.set_float32_matmul_precision("highest")  # no TensorFloat-32, whatever the machine prefers
    device = device_of(given.device)
    data = read(given.data)
    checkpoint = given.checkpoint or fine_tuned(data, Recipe.suiting(data), given.cache)
    settings = Settings(
        texts=given.calibration,
        minimum=given.minimum,
        rate=given.rate,
        distillation=given.distillation,
        repeats=given.repeats,
    )
    table = prefill_of(given.table) if given.table else None
    bench = Bench(data, checkpoint, settings, Store(given.cache, described(device)), device, table)
    limits = [Limit(text) for text in given.budgets.split(",")]
    methods, recoveries = given.methods.split(","), given.recovery.split(",")
    todo = cells(methods, limits, recoveries, given.seeds, given.most_seeds)
    for cell in {cell.limit: cell for cell in todo}.values():
        _ = bench.task(cell).budget  # refuses what nothing meets, before hours go by
    mine = [] if given.collect else share(urgent_first(todo), given.shard)
    until, failed = started + 60 * given.minutes, list[tuple[Cell, Exception]]()
    for number, cell in enumerate(worked(bench, mine, until, failed), start=1):
        row = bench.result(cell)
        assert row is not None
        tell(
            f"{number}/{len(mine)} {time.monotonic() - started:.0f} s: {cell.method} {cell.limit.text} "
            f"seed {cell.seed} {cell.recovery} {row['counts']} test {row['test']:.4f} kl {row['kl']:.4f}"
        )
    output = given.output or RESULTS / f"{data.name}.json"
    record = report(bench, todo, {"checkpoint": given.checkpoint and given.checkpoint.name})
    with whole_file(output) as temporary:
        text = json.dumps(record, indent=1, allow_nan=False)
        temporary.write_text(_compact(text) + "\n", encoding="utf-8")
    tell(f"written: {output.name}, {record['missing']} of {len(todo)} results are missing")
    for cell, error in failed:
        tell(f"failed: {cell.method} {cell.limit.text} seed {cell.seed} {cell.recovery}: {error!r}")
    if failed:
        raise failed[0][1]
    return 0


def _compact(text: str) -> str:
    """Lists of numbers on one line each."""
    return re.sub(r"\[[\s\d.,]*\]", lambda m: " ".join(m[0].split()), text)


if __name__ == "__main__":
    sys.exit(main())
