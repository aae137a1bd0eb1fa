"""Which objective predicts what removing units does to a model, and which chooses well.

    python benchmarks/objectives/run.py --data DATA --checkpoint MODEL --recovery none
    python benchmarks/objectives/run.py --data DATA --checkpoint MODEL --recovery refit

``DATA`` holds ``train.tsv`` and ``dev.tsv`` with the columns ``label`` and ``text`` (and maybe ``text_pair``);
``MODEL`` is a classifier for them. For every number of units to keep, random keep-sets (the same for every
objective and recovery), and the keep-set that each objective of ``catalogue.py`` chooses, are judged by the KL
divergence from the dense model and the accuracy on held-out texts. Writes
``benchmarks/results/objectives/<name of DATA>-<recovery>.json``, from which ``report.py`` makes the page. Every
keep-set is on disk before the next one: what was interrupted goes on, and a new objective costs only its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import described, device_of, facts
from benchmarks.objectives.catalogue import OBJECTIVES
from cahp_opt import Budget, HeadStats, Problem, Selection, select
from cahp_opt.arrays import Bools
from cahp_opt.objectives import Quadratic
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.texts import read_table, split
from cahp_opt.solvers import Auto
from cahp_opt.space import HeadSpace
from cahp_opt.torch import (
    calibrate,
    fidelity_of,
    find_attention,
    head_mask,
    refit,
    select_staged,
    slice_heads,
)
from cahp_opt.torch.calibration.token_weights import TokenWeights
from cahp_opt.torch.running.batches import inputs_of
from cahp_opt.torch.texts.encoding import encode

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "objectives"
SHARES = (0.75, 0.5, 1 / 3, 0.25, 0.15, 1 / 12)
"""Of the units; 54, 36, 24, 18, 11 and 6 of 72."""
RECOVERIES = (Recovery.NONE, Recovery.REFIT)
BATCH = 32
SEARCH = 3.0
"""Seconds that choosing one keep-set may take."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Args:
        data: the name of the data.
        model: digest of the model's weights.
        recovery: what is done to a model before it is judged.
        calibration: texts to calibrate and refit on.
        gradients: texts of these for gate gradients and for the divergence of attention maps.
        held_out: texts to judge by.
        seed: of the texts, the masks and the keep-sets.
    """

    data: str
    model: str
    recovery: str
    calibration: int
    gradients: int
    held_out: int
    seed: int


class Judge:
    """Judges keep-sets of one model on held-out texts, after a recovery.

    Args:
        model: the dense model.
        recovery: what is done first.
        calibration: batches that a refit may use.
        held_out: batches to judge by.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        recovery: Recovery,
        calibration: Sequence[Mapping[str, Any]],
        held_out: Sequence[Mapping[str, Any]],
    ) -> None:
        self._model, self._recovery = model, recovery
        self._calibration, self._held_out = calibration, held_out
        self._fidelity = fidelity_of(model)
        self._dense = self._outputs(model)
        self._weights = TokenWeights(model)

    def __call__(self, kept: Bools | None) -> Row:
        """KL divergence and accuracy with these units; of the dense model for None."""
        began = time.monotonic()
        if kept is None:
            outputs = self._dense
        elif self._recovery.refits:
            small = slice_heads(self._model, kept)
            refit(small, self._model, self._calibration, weighting=self._weights)
            outputs = self._outputs(small)
        else:
            with head_mask(self._model, kept):
                outputs = self._outputs(self._model)
        total = correct = examples = 0.0
        for batch, dense, other in zip(self._held_out, self._dense, outputs, strict=True):
            total += float(self._fidelity.distance(dense, other, batch).sum())
            correct += int((other.argmax(dim=-1) == batch["labels"]).sum())
            examples += len(other)
        seconds = round(time.monotonic() - began, 2)
        return {"kl": total / examples, "accuracy": correct / examples, "seconds": seconds}

    def _outputs(self, model: torch.nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return [
                self._fidelity.output(model(**inputs_of(batch)), batch) for batch in self._held_out
            ]


def random_sets(n: int, kept: int, sets: int, seed: int) -> list[Bools]:
    """Keep-sets of one size, each as likely as any other; more of them begin with the same ones."""
    rng = np.random.default_rng((seed, kept))
    found = np.zeros((sets, n), dtype=np.bool_)
    for row in found:
        row[rng.choice(n, size=kept, replace=False)] = True
    return list(found)


def name_of(kept: Bools) -> str:
    """A keep-set as text: one hexadecimal digit per four units, the first unit first."""
    return np.packbits(kept).tobytes().hex()


def kept_of(name: str, n: int) -> Bools:
    """The keep-set of that name."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(name), dtype=np.uint8))
    return bits[:n].astype(np.bool_)


def choice(selection: Selection, began: float) -> Row:
    """What the record holds of a selection that was begun at that time."""
    return {
        "kept": name_of(selection.kept),
        "gap": selection.gap if np.isfinite(selection.gap) else None,
        "seconds": round(time.monotonic() - began, 2),
    }


def judged(record: Row, judge: Judge, kept: Bools, path: Path) -> None:
    """Judge a keep-set, unless the record has it, and write the record."""
    name = name_of(kept)
    if name not in record["judged"]:
        record["judged"][name] = judge(kept)
        write(record, path)


def write(record: Row, path: Path) -> None:
    """Replace the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    half.replace(path)


def started(settings: Settings, space: HeadSpace, path: Path) -> Row:
    """The record of an earlier run with these settings, or an empty one."""
    if path.is_file():
        record: Row = json.loads(path.read_text(encoding="utf-8"))
        if record["settings"] == asdict(settings):
            return record
        print(f"{path.name} is of other settings; it starts anew", file=sys.stderr)
    return {
        "benchmark": "objectives",
        "settings": asdict(settings),
        "blocks": space.to_json(),
        "provenance": facts(torch.device("cpu"), ("cahp-opt", "torch", "transformers", "numpy")),
        "random": {},
        "values": {},
        "chosen": {},
        "judged": {},
    }


def measured(
    model: torch.nn.Module, batches: Sequence[Mapping[str, Any]], settings: Settings, cache: Path
) -> tuple[HeadStats, float | None]:
    """The statistics, and the seconds they took; kept in a file, with None for the seconds."""
    space = find_attention(model).space
    densities = sorted({1.0, 0.5, *(count / space.n for count in counts_of(space))})
    options = {**asdict(settings), "recovery": "", "held_out": 0, "densities": densities}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"{digest}.safetensors"
    if path.is_file():
        return HeadStats.load(path), None
    began = time.monotonic()
    stats = calibrate(
        model,
        batches,
        densities=densities,
        fisher=True,
        gradient_examples=settings.gradients,
        sensitivity_examples=settings.calibration,
        divergence_examples=settings.gradients,
        signature_size=32,
        seed=settings.seed,
    )
    cache.mkdir(parents=True, exist_ok=True)
    stats.save(path)
    return stats, round(time.monotonic() - began, 1)


def counts_of(space: HeadSpace) -> list[int]:
    """How many units are kept."""
    return [round(share * space.n) for share in SHARES]


def evaluate_objectives(record: Row, stats: HeadStats, kept: int, sets: int, seed: int) -> None:
    """Every objective at random keep-sets of one size, and what it chooses, unless the record has that."""
    drawn = random_sets(stats.space.n, kept, sets, seed)
    record["random"][str(kept)] = [name_of(one) for one in drawn]
    for objective, build in OBJECTIVES.items():
        made, began = build(stats, kept), time.monotonic()
        values = record["values"].setdefault(objective, {})
        values[str(kept)] = [made.value(one) for one in drawn]
        chosen = record["chosen"].setdefault(objective, {})
        if str(kept) not in chosen:
            problem = Problem(made, Budget.heads(stats.space, kept))
            chosen[str(kept)] = choice(select(problem, Auto(), time_limit=SEARCH), began)


def choose_in_stages(
    record: Row,
    model: torch.nn.Module,
    batches: Sequence[Mapping[str, Any]],
    kept: int,
    stages: int,
    seed: int,
) -> None:
    """What `select_staged` chooses with Gauss-Newton matrices, unless the record has that."""
    chosen, began = record["chosen"].setdefault("Gauss-Newton, staged", {}), time.monotonic()
    if str(kept) not in chosen:
        made = Quadratic.from_stats
        selection = select_staged(
            model, batches, made, kept, Auto(), stages=stages, time_limit=SEARCH, seed=seed
        )
        chosen[str(kept)] = choice(selection, began)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.tsv and dev.tsv")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the fine-tuned classifier")
    names = [recovery.value for recovery in RECOVERIES]
    parser.add_argument("--recovery", choices=names, required=True)
    parser.add_argument("--sets", type=int, default=20, help="random keep-sets per size")
    parser.add_argument("--calibration", type=int, default=1024, help="texts")
    parser.add_argument("--gradients", type=int, default=256, help="of these texts, for gradients")
    parser.add_argument("--held-out", type=int, default=512, help="texts of dev.tsv to judge by")
    parser.add_argument(
        "--stages", type=int, default=0, help="of `select_staged`, which is tried too if above 0"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where keep-sets are judged")
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "objectives")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = device_of(given.device)
    recovery = Recovery(given.recovery)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(given.checkpoint)
    model = model.float().eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(given.checkpoint)

    def batches(name: str, most: int) -> list[dict[str, torch.Tensor]]:
        found = split(read_table(given.data / name), most=most, held_out=0, seed=given.seed)
        return encode(
            found.calibration, tokenizer, model, batch_size=BATCH, max_length=128, seed=given.seed
        )

    def there(found: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        return [{key: value.to(device) for key, value in batch.items()} for batch in found]

    calibration = batches("train.tsv", given.calibration)
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    settings = Settings(
        given.data.name,
        digest.hexdigest()[:16],
        recovery.value,
        given.calibration,
        given.gradients,
        given.held_out,
        given.seed,
    )
    path = given.out / f"{settings.data}-{settings.recovery}.json"
    space = find_attention(model).space
    record = started(settings, space, path)
    stats, seconds = measured(model, calibration, settings, given.cache)
    if seconds is not None:
        record["calibration seconds"] = seconds
    for kept in counts_of(space):
        evaluate_objectives(record, stats, kept, given.sets, settings.seed)
        write(record, path)
        print(f"{kept} kept: the objectives are evaluated", file=sys.stderr, flush=True)
    if given.stages and not recovery.refits:
        few = calibration[: -(-given.gradients // BATCH)]
        for kept in counts_of(space):
            choose_in_stages(record, model, few, kept, given.stages, settings.seed)
            write(record, path)
    model.to(device)  # all the choices are made on the CPU, so that they are the same everywhere
    judge = Judge(model, recovery, there(calibration), there(batches("dev.tsv", given.held_out)))
    record["dense"] = judge(None)
    record["provenance"]["judged on"] = described(device)
    wanted = [
        # In turns, so that what is there after an interruption holds as many of every size.
        *(name for names in zip(*record["random"].values(), strict=True) for name in names),
        *(row["kept"] for rows in record["chosen"].values() for row in rows.values()),
    ]
    for done, name in enumerate(dict.fromkeys(wanted), start=1):
        judged(record, judge, kept_of(name, space.n), path)
        if done % 20 == 0:
            print(f"{done} of {len(set(wanted))} keep-sets", file=sys.stderr, flush=True)
    print(f"written: {path}; python benchmarks/objectives/report.py makes the page")


if __name__ == "__main__":
    main()
