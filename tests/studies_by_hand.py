"""A study made by hand: twelve blocks, four methods of which two tie, and cells that failed."""

from __future__ import annotations

import math

import numpy as np

from cahp_opt import Block, Check, HeadSpace, Unit
from cahp_opt.solver import Status
from cahp_opt.studies.figures import Judging
from cahp_opt.studies.outcome import Cell, Outcome
from cahp_opt.studies.random_sets import RandomSets
from cahp_opt.studies.scores import Scores
from cahp_opt.studies.study import Study

SPACE = HeadSpace(
    tuple(
        block
        for layer in range(6)
        for block in (
            Block(f"layer.{layer}.attention", 12),
            Block(f"layer.{layer}.mlp", 12, Unit.NEURON_GROUP),
        )
    )
)
DAMAGE = {"default": 0.02, "kwon": 0.022, 'odd <b>&"': 0.08, "random": 0.3}
"""The share of answers that each method's models get wrong beside the unpruned model's, at 0.7."""
EXAMPLES = 150


def scores(wrong: float, seed: int) -> Scores:
    """Classes of which the unpruned model gets a tenth wrong, and this one a share more."""
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=EXAMPLES)
    draw, own = rng.random(EXAMPLES), np.random.default_rng(seed + 1)
    missed = draw < 0.1 + wrong + 0.01 * own.normal()
    predicted = np.where(missed, (label + 1) % 3, label)
    return Scores(
        Judging.CLASSES,
        {
            "kl": wrong * own.random(EXAMPLES),
            "agreement": (predicted == np.where(draw < 0.1, (label + 1) % 3, label)).astype(float),
            "predicted": predicted.astype(float),
            "label": label.astype(float),
        },
    )


def outcome(method: str, limit: str, recovery: str, seed: int, *, timed: bool = True) -> Outcome:
    """What came out of one cell."""
    rng = np.random.default_rng([seed, len(method)])
    share = float(limit)
    kept = rng.random(SPACE.n) < share * np.repeat(np.linspace(1.1, 0.7, 12), 12)
    wrong = DAMAGE[method] * (0.7 / share) ** 2 * (0.6 if recovery == "refit" else 1.6)
    times = {
        "prefill": Check(
            predicted=share * 0.03,
            measured=share * 0.031 * (1 + 0.01 * float(rng.normal())),
            dense_predicted=0.03,
            dense_measured=0.03,
        )
    }
    return Outcome(
        Cell(method, limit, recovery, seed),
        tuple(SPACE.counts(kept).tolist()),
        kept,
        scores(wrong, seed),
        1.0,
        math.inf,
        Status.FEASIBLE,
        times=times if timed else {},
        seconds={"calibrate": 2.0, "refit": 1.5},
        provenance={"method": method},
        notes=("a note",) if method == "kwon" else (),
    )


def random_sets(limit: str, seed: int) -> RandomSets:
    """Keep-sets that two objectives rank, one of them well, and a third cannot."""
    rng = np.random.default_rng([seed, len(limit)])
    damage = rng.random(12) * 0.4 + 0.1
    return RandomSets(
        limit,
        seed,
        rng.random((12, SPACE.n)) < float(limit),
        {"kwon": -damage + 0.02 * rng.normal(size=12), 'odd <b>&"': rng.random(12)},
        {
            "none": {"kl": damage, "accuracy": 1 - damage},
            "refit": {"kl": damage / 2 + 0.03 * rng.random(12), "accuracy": 1 - damage / 2},
        },
        {"never": "the texts have no <labels>."},
    )


def study(*, seeds: int = 3, timed: bool = True, objectives: bool = False) -> Study:
    """All methods at two limits with two recoveries; two cells of which failed, and one has not run. Two of the
    methods maximise objectives, if there are some."""
    failed = {
        Cell("random", "0.5", "refit", 0): "out of memory at <layer 3>",
        Cell("kwon", "0.5", "none", 0): "",
    }
    cells = [
        (method, limit, recovery, seed)
        for recovery in ("none", "refit")
        for limit in ("0.7", "0.5")
        for method in DAMAGE
        for seed in range(seeds)
    ]
    return Study(
        "all-MiniLM-L6-v2",
        "sst5",
        SPACE,
        scores(0.0, 0),
        tuple(outcome(*cell, timed=timed) for cell in cells if Cell(*cell) not in failed),
        {cell: why for cell, why in failed.items() if cell.seed < seeds},
        {"device": "a processor, 2 threads", "torch": "2.13.0"},
        ("a note on the study",),
        tuple(
            random_sets(limit, seed)
            for seed in range(seeds)
            for limit in ("0.7", "0.5")
            if objectives
        ),
    )
