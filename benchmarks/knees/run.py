"""How many units each automatic rule keeps, how far its answer moves, and what it is worth.

    python benchmarks/knees/run.py --model minilm-sst5 --train sst5/train.tsv --dev sst5/dev.tsv

On a classifier and labelled sentences: the silhouette knee of the seed method (every degree and seed of
t-SNE) and knees of the library's frontier, by the objective's own value and by quality measured on
held-out sentences; for several draws of the calibration sentences. The selections that they stop at are
sliced and judged on the development set, without recovery and refitted. Writes
``benchmarks/results/knees/<name of the model>.json`` after every step; a step that is in there is not
done again. ``report.py`` writes ``docs/automatic-size.md`` from it.

Seconds are those of the processor (one thread), so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from torch import Tensor, nn

from benchmarks.knees.rules import DEGREES, measured_rules, value_rules
from benchmarks.machine import facts
from cahp_opt import Budget, Frontier, Problem, frontier, select
from cahp_opt.arrays import Bools
from cahp_opt.objectives import Complementarity, ExplainedVariance
from cahp_opt.runs.texts import Example, read_table
from cahp_opt.solvers import CAHP, DynamicProgram
from cahp_opt.torch import calibrate, find_attention, refit, slice_heads
from cahp_opt.torch.texts.encoding import encode

RESULTS = Path(__file__).resolve().parents[1] / "results" / "knees"
PACKAGES = ("cahp-opt", "torch", "transformers", "scikit-learn", "numpy")
SIGNATURE = 32
"""Cells along each side of the seed method's attention maps."""

Batches = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Sentences:
    """Encoded sentences, none of which is in two of the parts except ``draws`` among themselves."""

    draws: tuple[Batches, ...]
    refit: Batches
    held_out: Batches
    dev: Batches


@contextmanager
def counted(model: nn.Module, into: dict[str, Any], examples: int) -> Iterator[None]:
    """Note passes over that many ``examples`` and seconds of the processor in ``into``.

    A pass that records gradients counts as a forward and a backward one.
    """
    forward = backward = 0

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal forward, backward
        rows = len(kwargs["input_ids"])
        forward += rows
        backward += rows if torch.is_grad_enabled() else 0

    handle = model.register_forward_hook(hook, with_kwargs=True)
    start = time.process_time()
    try:
        yield
    finally:
        handle.remove()
        into["seconds"] = round(time.process_time() - start, 2)
        into["forward"] = round(forward / examples, 3)
        into["backward"] = round(backward / examples, 3)


def sentences(given: argparse.Namespace, model: nn.Module, tokenizer: Any) -> Sentences:
    """The parts, drawn from the training file; ``dev`` is the whole of its own."""

    def encoded(part: Sequence[Example]) -> Batches:
        return encode(part, tokenizer, model, batch_size=32, max_length=128)

    pool = list(dict.fromkeys(read_table(given.train)))
    random.Random(given.seed).shuffle(pool)
    fixed = given.refit + given.held_out
    rest = pool[fixed:]
    return Sentences(
        tuple(
            encoded(random.Random(draw).sample(rest, given.calibration))
            for draw in range(given.draws)
        ),
        encoded(pool[: given.refit]),
        encoded(pool[given.refit : fixed]),
        encoded(read_table(given.dev)[: given.dev_limit]),
    )


def unlabelled(batches: Batches) -> Batches:
    return [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]


def key(kept: Bools) -> str:
    return "".join("1" if unit else "0" for unit in kept)


def kept_of(text: str) -> list[bool]:
    return [unit == "1" for unit in text]


def silhouettes(
    model: nn.Module, batches: Batches, examples: int, seeds: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the seed method costs, and where it stops for every degree and seed."""
    cost: dict[str, Any] = {}
    with counted(model, cost, examples):  # salience from a quarter of the sentences, as it does
        stats = calibrate(
            model, batches, densities=(), gradient_examples=examples // 4, signature_size=SIGNATURE
        )
    problem = Problem(Complementarity.from_stats(stats), Budget.heads(stats.space, stats.space.n))
    stops, start = list[dict[str, Any]](), time.process_time()
    for degree in DEGREES:
        for seed in range(seeds):
            found = select(problem, CAHP(degree=degree), seed=seed)
            rule = {"rule": "silhouette", "degree": degree, "seed": seed}
            stops.append({**rule, "knee": found.stats["knee"], "kept": key(found.kept)})
    cost["solving"] = round((time.process_time() - start) / len(stops), 2)
    return cost, stops


def solved(model: nn.Module, batches: Batches, examples: int) -> tuple[dict[str, Any], Frontier]:
    """What the library's frontier costs, and the frontier over every number of units."""
    cost: dict[str, Any] = {}
    with counted(model, cost, examples):
        stats = calibrate(model, unlabelled(batches), densities=(), gradient_examples=0)
    start, units = time.process_time(), stats.space.n
    problem = Problem(
        ExplainedVariance.from_stats(stats), Budget.heads(stats.space, units, minimum=1)
    )
    found = frontier(problem, DynamicProgram(), range(len(stats.space.blocks), units + 1))
    cost["solving"] = round(time.process_time() - start, 2)
    return cost, found


def logits(model: nn.Module, batches: Batches) -> Tensor:
    """The output for every sentence, ``[sentences, classes]``."""
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in unlabelled(batches)])


@dataclass(frozen=True)
class Judge:
    """Compares models with the dense one, whose output it remembers."""

    dense: Tensor
    batches: Batches

    def figures(self, model: nn.Module) -> dict[str, float]:
        """KL divergence from the dense model in nats, and the share of right answers."""
        found = logits(model, self.batches)
        labels = torch.cat([batch["labels"] for batch in self.batches])
        kl = torch.nn.functional.kl_div(
            found.log_softmax(-1),
            self.dense.log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        )
        right = (found.argmax(-1) == labels).double().mean()
        return {"kl": round(float(kl), 5), "accuracy": round(float(right), 5)}


def recovered(model: nn.Module, small: nn.Module, batches: Batches) -> nn.Module:
    """A refitted copy of ``small``."""
    better = copy.deepcopy(small)
    refit(better, model, unlabelled(batches))
    return better


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--model", type=Path, required=True, help="folder of a classifier")
    options.add_argument("--train", type=Path, required=True, help="labelled sentences, TSV")
    options.add_argument("--dev", type=Path, required=True, help="to judge by, TSV")
    options.add_argument("--draws", type=int, default=3, help="of calibration sentences")
    options.add_argument("--calibration", type=int, default=480, help="sentences of a draw")
    options.add_argument("--refit", type=int, default=1024, help="sentences to refit on")
    options.add_argument("--held-out", type=int, default=256, help="sentences of measured quality")
    options.add_argument("--dev-limit", type=int, default=None, help="first sentences of dev only")
    options.add_argument("--seeds", type=int, default=10, help="of t-SNE")
    options.add_argument("--judged-seeds", type=int, default=1, help="of t-SNE that are judged")
    options.add_argument("--step", type=int, default=3, help="units between measured selections")
    options.add_argument("--refitted-draws", type=int, default=1, help="measured refitted too")
    options.add_argument("--seed", type=int, default=0, help="of the split of the training file")
    options.add_argument("--minutes", type=float, default=240, help="after which no step starts")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    given = options.parse_args(arguments)

    torch.set_num_threads(1)
    end = time.monotonic() + 60 * given.minutes
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        given.model, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    parts = sentences(given, model, tokenizer)
    space = find_attention(model).space
    path = given.output / f"{given.model.resolve().name}.json"
    places = ("model", "train", "dev", "minutes", "output")
    settings = {k: v for k, v in vars(given).items() if k not in places}
    record = _begun(path, settings)
    record |= {"model": given.model.resolve().name, "units": space.n, "blocks": len(space.blocks)}
    record["provenance"] = facts(torch.device("cpu"), PACKAGES)
    dev, held_out = (Judge(logits(model, part), part) for part in (parts.dev, parts.held_out))
    record["judged on"] = len(dev.dense)
    record["dense"] = {"dev": dev.figures(model), "held out": held_out.figures(model)}

    for draw, batches in enumerate(parts.draws):
        if draw == len(record["draws"]):
            seed_cost, stops = silhouettes(model, batches, given.calibration, given.seeds)
            cost, curve = solved(model, batches, given.calibration)
            record["draws"].append(
                {
                    "costs": {"silhouette": seed_cost, "frontier": cost},
                    "stops": stops,
                    "frontier": {
                        "values": [float(v) for v in curve.values],
                        "kept": [key(s.kept) for s in curve],
                    },
                    "measured": {},
                }
            )
            _save(record, path)
    for refitted in (False, True):
        for draw in range(given.refitted_draws if refitted else given.draws):
            if time.monotonic() < end:
                _measure(record, draw, model, parts.draws[draw], held_out, given.step, refitted)
                _save(record, path)
    for kept in _to_judge(record, given.judged_seeds):
        if kept not in record["judged"] and time.monotonic() < end:
            record["judged"][kept] = _judged(model, kept, parts.refit, dev)
            _save(record, path)
            print(sum(kept_of(kept)), record["judged"][kept], flush=True)


def _begun(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The record to go on with.

    Raises:
        SystemExit: if it was made with other settings.
    """
    if not path.exists():
        return {"benchmark": "knees", "settings": settings, "draws": [], "judged": {}}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    changing = ("judged_seeds", "refitted_draws")  # which only add steps
    before = {k: v for k, v in record["settings"].items() if k not in changing}
    if before != {k: v for k, v in settings.items() if k not in changing}:
        raise SystemExit(f"{path} was made with {record['settings']}; choose another --output")
    return record | {"settings": settings}


def _save(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _measure(
    record: dict[str, Any],
    draw: int,
    model: nn.Module,
    batches: Batches,
    judge: Judge,
    step: int,
    refitted: bool,
) -> None:
    """The quality of every ``step``-th selection of a frontier, on held-out sentences."""
    told = record["draws"][draw]
    name = "refitted" if refitted else "sliced"
    if name in told["measured"]:
        return
    start, points = time.process_time(), list[dict[str, Any]]()
    chosen = [kept for kept in told["frontier"]["kept"] if sum(kept_of(kept)) % step == 0]
    for kept in chosen:
        small = slice_heads(model, kept_of(kept))
        if refitted and not all(kept_of(kept)):
            small = recovered(model, small, batches)
        points.append({"kept": kept, **judge.figures(small)})
    seconds = round(time.process_time() - start, 1)
    told["measured"][name] = {"seconds": seconds, "points": points}


def _to_judge(record: dict[str, Any], seeds: int) -> list[str]:
    """Where the rules stop, and for the seed method also the library's choice of that many units."""
    found = dict[str, None]()
    for draw in record["draws"]:
        by_units = {sum(kept_of(kept)): kept for kept in draw["frontier"]["kept"]}
        for stop in draw["stops"]:
            if stop["seed"] < seeds:
                found[stop["kept"]] = None
                if (units := sum(kept_of(stop["kept"]))) in by_units:
                    found[by_units[units]] = None
        for kept in value_rules(draw["frontier"]).values():
            found[kept] = None
        for measured in draw["measured"].values():
            for kept in measured_rules(measured["points"]).values():
                found[kept] = None
    return list(found)


def _judged(model: nn.Module, kept: str, batches: Batches, dev: Judge) -> dict[str, Any]:
    small = slice_heads(model, kept_of(kept))
    before, start = dev.figures(small), time.process_time()
    better = recovered(model, small, batches)
    seconds = round(time.process_time() - start, 1)
    return {"sliced": before, "refitted": dev.figures(better), "refit": seconds}


if __name__ == "__main__":
    main()
