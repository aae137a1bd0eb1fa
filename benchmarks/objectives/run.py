"""Which objective predicts what removing units does to a model, and which chooses well: a study of many objectives.

    python benchmarks/objectives/run.py --data DATA --checkpoint MODEL

``DATA`` holds ``train.tsv`` and ``dev.tsv`` with the columns ``label`` and ``text`` (and maybe ``text_pair``);
``MODEL`` is a classifier for them. Writes ``benchmarks/results/objectives/<name of DATA>.json``, from which
``report.py`` makes the page; the study itself, with ``report.html``, is in the folder of ``--output-dir``, and resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import described, facts
from benchmarks.objectives.catalogue import OBJECTIVES
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.workloads import Workload
from cahp_opt.reports.study_page import study_page
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.texts import read_table, split
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import Study
from cahp_opt.torch import study
from cahp_opt.torch.methods import Staged

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "objectives"
PACKAGES = ("cahp-opt", "torch", "transformers", "numpy")


def record(found: Study, settings: dict[str, Any]) -> dict[str, Any]:
    """What the page is made of: the raw material of the correlations, and the figures of what was chosen."""
    means = {row.arm: {name: m.value for name, m in row.figures.items()} for row in found.rows()}
    return {
        "benchmark": "objectives",
        "settings": settings,
        "blocks": found.space.to_json(),
        "provenance": {
            **facts(torch.device("cpu"), PACKAGES),
            "judged on": described(torch.device("cpu")),
        },
        "unpruned": found.unpruned.values(),
        "random": [
            {
                "limit": sets.limit,
                "seed": sets.seed,
                "kept": [np.packbits(kept).tobytes().hex() for kept in sets.kept],
                "values": {name: values.tolist() for name, values in sets.values.items()},
                "figures": {
                    recovery: {name: values.tolist() for name, values in figures.items()}
                    for recovery, figures in sets.figures.items()
                },
                "unvalued": dict(sets.unvalued),
            }
            for sets in found.random_sets
        ],
        "chosen": {
            recovery: {
                method: {
                    limit: means[Arm(method, limit, recovery)]
                    for limit in found.limits
                    if Arm(method, limit, recovery) in means
                }
                for method in found.methods
            }
            for recovery in found.recoveries
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.tsv and dev.tsv")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the fine-tuned classifier")
    parser.add_argument("--heads", default="54,36,24,18,11,6", help="numbers of units to keep")
    parser.add_argument("--recoveries", default="none,refit")
    parser.add_argument("--keep-sets", type=int, default=20, help="random keep-sets per number")
    parser.add_argument("--texts", type=int, default=1024, help="to calibrate and refit on")
    parser.add_argument("--held-out", type=int, default=512, help="texts of dev.tsv to judge by")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "out" / "objectives")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dev = split(read_table(given.data / "dev.tsv"), most=given.held_out, held_out=0, seed=0)
    found = study(
        given.checkpoint,
        texts=read_table(given.data / "train.tsv"),
        methods={"Gauss-Newton, staged": Staged(stages=4, examples=128)},
        objectives=OBJECTIVES,
        keep_sets=given.keep_sets,
        limits=[f"{number} heads" for number in given.heads.split(",")],
        recoveries=[Recovery(name) for name in given.recoveries.split(",")],
        seeds=1,
        held_out=dev.calibration,
        max_texts=given.texts,
        prune=Prune.HEADS,
        workloads=(Workload(1, 16, 1),),  # times are another benchmark's
        time_limit=3.0,
        output_dir=given.output_dir,
    )
    study_page(found).save(given.output_dir / "report.html")
    settings = {
        "data": given.data.name,
        "texts": given.texts,
        "held_out": given.held_out,
        "seed": 0,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"{given.data.name}.json"
    path.write_text(json.dumps(record(found, settings), indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}; python benchmarks/objectives/report.py makes the page")


if __name__ == "__main__":
    main()
