"""Studies of benchmarks, added to a record in ``benchmarks/results``."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from cahp_opt.studies.study import Study


def dated(found: Study, model: str) -> Study:
    """The study of a model of this name, with the day and the release of transformers among its facts."""
    facts = {"date": time.strftime("%Y-%m-%d"), "transformers": version("transformers")}
    return replace(found, model=model, provenance={**found.provenance, **facts})


def add_to_record(found: Study, record: Path) -> int:
    """Add the cells to a record, tell which failed and how many are there.

    Returns:
        The exit status: 1 if a cell failed.
    """
    for cell, why in found.missing.items():
        print(f"failed: {cell}: {why}")
    whole = Study.load(record).joined(found) if record.exists() else found
    record.parent.mkdir(parents=True, exist_ok=True)
    whole.save(record)
    print(f"{len(found.outcomes)} cells are in {record.name}, which has {len(whole.outcomes)}")
    return int(bool(found.missing))
