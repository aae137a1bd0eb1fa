"""How much accuracy each method keeps on a data set: a configuration of `cahp_opt.torch.study`.

    python benchmarks/accuracy/run.py --data ../shared/data/sst5 --checkpoint ../shared/models/minilm-sst5
    python benchmarks/accuracy/run.py --data ../shared/data/trec --limits 0.7,0.5 --recoveries refit --seeds 3

``--data`` is a folder of tables. Without a checkpoint all-MiniLM-L6-v2 is fine-tuned on it first, once. Every seed draws calibration
texts from the training set; models are judged on the whole test set. What came out is added to the record of the data set in
``benchmarks/results/accuracy``. A run that was stopped goes on where it was, and several processes share the work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from transformers import AutoModelForSequenceClassification

from benchmarks.accuracy.data import Data, read
from benchmarks.accuracy.training import CACHE, fine_tuned
from benchmarks.study_records import add_to_record, dated
from cahp_opt.cli.plugins import method_named
from cahp_opt.cli.study_display import StudyDisplay
from cahp_opt.costs.profile import Profile
from cahp_opt.runs.plan import Reading
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.study_texts import StudyTexts
from cahp_opt.studies.scores import Scores
from cahp_opt.studies.study import Study
from cahp_opt.torch import study
from cahp_opt.torch.blocks.fingerprint import structure

RESULTS = Path(__file__).resolve().parents[1] / "results" / "accuracy"
METHODS = "default,kwon,osscar,k-prune,zip-levels,michel,even,magnitude,random"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data", type=Path, required=True, help="a folder of tables")
    options.add_argument("--checkpoint", type=Path, help="a fine-tuned model; made if not given")
    options.add_argument("--methods", default=METHODS)
    options.add_argument("--limits", default="0.7,0.5", help="as `cahp study`; also `24 heads`")
    options.add_argument("--recoveries", default="none,refit")
    options.add_argument("--seeds", type=int, default=1, help="draws of the calibration texts")
    options.add_argument("--texts", type=int, default=2048, help="in a draw")
    options.add_argument("--longest", type=int, default=64, help="tokens per text")
    options.add_argument(
        "--latency-table", type=Path, help="of the encoder with any outputs; measured if not given"
    )
    options.add_argument("--jobs", type=int, default=1, help="processes, each with the model")
    options.add_argument("--cache", type=Path, default=CACHE)
    options.add_argument("--output", type=Path, help="file; one for the data set if not given")
    return options.parse_args(arguments)


def studied(given: argparse.Namespace, data: Data) -> Study:
    """The study that is asked for, run as far as it is not there."""
    checkpoint = given.checkpoint or fine_tuned(data, given.cache)
    found = study(
        checkpoint,
        texts=StudyTexts(data.train, data.test, given.texts, f"the test set of {data.name}"),
        methods={name: method_named(name) for name in given.methods.split(",")},
        limits=given.limits.split(","),
        recoveries=[Recovery(name) for name in given.recoveries.split(",")],
        seeds=given.seeds,
        reading=Reading(max_length=given.longest),
        profile=given.latency_table and table_of_encoder(given.latency_table, checkpoint),
        output_dir=given.cache / "studies" / data.name,
        jobs=given.jobs,
        stages=StudyDisplay(),
    )
    return dated(found, checkpoint.name)


def table_of_encoder(path: Path, checkpoint: Path) -> Profile:
    """The latencies in a file of `cahp latency`, for a checkpoint.

    Models of all tasks are one encoder with outputs of their own, which are in no block: one table serves them all.
    """
    found = Profile.load(path)
    model = structure(AutoModelForSequenceClassification.from_pretrained(checkpoint))
    tables = found.latency.items()
    latency = {n: replace(t, provenance=replace(t.provenance, model=model)) for n, t in tables}
    return Profile(found.space, latency)


def compact(found: Study) -> Study:
    """The same with what a record needs to rank by accuracy and to state the divergence, which is rounded to half precision."""

    def rounded(scores: Scores) -> Scores:
        kept = {name: scores.arrays[name] for name in ("predicted", "label")}
        half = scores.arrays["kl"].astype(np.float16)
        return Scores(scores.judging, {**kept, "kl": half.astype(np.float64)})

    outcomes = tuple(replace(o, scores=rounded(o.scores)) for o in found.outcomes)
    return replace(found, unpruned=rounded(found.unpruned), outcomes=outcomes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and add to the record."""
    given = _parse(arguments)
    data = read(given.data)
    found = studied(given, data)
    heads_alone = bool(found.space.of_attention.all())  # a record of its own: it is of other blocks
    record = given.output or RESULTS / f"{data.name}{'-heads' * heads_alone}.safetensors"
    return add_to_record(compact(found), record)


if __name__ == "__main__":
    sys.exit(main())
