"""How much perplexity each method costs small decoders: a configuration of `cahp_opt.torch.study`.

    python benchmarks/decoders/train.py --books ../shared/data/books --output small-llama --steps 1500
    python benchmarks/decoders/run.py --model small-llama --name llama --books ../shared/data/books
    python benchmarks/decoders/run.py --model small-llama --name llama-decode --books ../shared/data/books \
        --methods default,michel,even,k-prune --workload decode:32x120 --limits "decode=0.7 and kv_cache=0.7" --recoveries refit

The second one is about the time of a decoding step and the bytes of the key/value cache together. Calibration texts are paragraphs of ``train.txt``; models are judged on those of ``test.txt``. What came out is added to the record of
that name in ``benchmarks/results/decoders``. A run that was stopped goes on where it was.
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

from benchmarks.study_records import add_to_record, dated
from cahp_opt.cli.plugins import method_named
from cahp_opt.cli.study_display import StudyDisplay
from cahp_opt.costs.goals import asked_latency, asked_limit
from cahp_opt.costs.prune import Prune
from cahp_opt.costs.target import Target
from cahp_opt.costs.workloads import Workload
from cahp_opt.runs.limits import Limit
from cahp_opt.runs.plan import Reading
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.study_texts import StudyTexts
from cahp_opt.runs.texts import Example
from cahp_opt.torch import study

RESULTS = Path(__file__).resolve().parents[1] / "results" / "decoders"
METHODS = "default,osscar,zip-levels,k-prune,michel,even,random"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and add to the record."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--model", type=Path, required=True, help="a folder of `train.py`")
    options.add_argument("--name", required=True, help="of the record")
    options.add_argument("--books", type=Path, required=True, help="holds train.txt and test.txt")
    options.add_argument("--methods", default=METHODS)
    options.add_argument(
        "--limits", default="0.7,0.5", help="as `cahp study`, or several that hold together"
    )
    options.add_argument("--workload", default="prefill:8", help="what models are timed on")
    options.add_argument("--recoveries", default="none,refit")
    options.add_argument("--seeds", type=int, default=1, help="draws of the calibration texts")
    options.add_argument("--texts", type=int, default=512, help="in a draw")
    options.add_argument("--held-out", type=int, default=512, help="paragraphs to judge by")
    options.add_argument("--work", type=Path, default=Path("decoder-studies"))
    options.add_argument("--results", type=Path, default=RESULTS)
    given = options.parse_args(arguments)

    train, test = (paragraphs(given.books / f"{name}.txt") for name in ("train", "test"))
    found = study(
        given.model,
        texts=StudyTexts(train, test[: given.held_out], given.texts, "the ends of the books"),
        methods={name: method_named(name) for name in given.methods.split(",")},
        limits=[limit(text) for text in given.limits.split(",")],
        recoveries=[Recovery(name) for name in given.recoveries.split(",")],
        seeds=given.seeds,
        prune=Prune.BOTH,
        reading=Reading(max_length=128),
        workloads=[Workload.parse(given.workload)],
        output_dir=given.work / given.name,
        stages=StudyDisplay(),
    )
    found = dated(found, given.name)
    found = replace(found, provenance={**found.provenance, "workload": given.workload})
    return add_to_record(found, given.results / f"{given.name}.safetensors")


def limit(text: str) -> Limit:
    """A limit as `cahp study` has it, or a time and bytes that hold together: ``decode=0.7 and kv_cache=0.7``."""
    time, *others = text.split(" and ")
    if not others:
        return Limit.parse(text)
    return Limit(text, Target(goals=(asked_latency(time), *map(asked_limit, others))))


def paragraphs(path: Path) -> tuple[Example, ...]:
    """The lines of a file that hold at least ten words."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(Example(line) for line in lines if len(line.split()) >= 10)


if __name__ == "__main__":
    sys.exit(main())
