"""The page on small decoders says what the records say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.decoders import report, run
from benchmarks.pages import stale
from cahp_opt.studies.outcome import Arm
from cahp_opt.studies.study import Study

RECORDS = sorted(report.RESULTS.glob("*.safetensors"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_row_has_the_perplexity_and_what_it_is_of_the_unpruned(path: object) -> None:
    study = Study.load(str(path))
    dense = study.unpruned.value("perplexity")
    text = report.section_of("name", study)
    place = study.outcomes[0].cell
    outcome = study.of(Arm(place.method, place.limit, place.recovery))[place.seed]
    value = outcome.scores.value("perplexity")
    row = next(line for line in text.splitlines() if line.startswith(f"| {place.method} |"))
    assert f"{value:.1f}" in row and f"({value / dense:.3f})" in row
    assert f"unpruned perplexity per token {dense:.1f}" in text


def test_a_limit_on_the_cache_is_beside_that_on_the_time() -> None:
    """The bytes of this model's cache are those of its groups, all alike."""
    study = Study.load(str(report.RESULTS / "llama-decode.safetensors"))
    attention, text = study.space.of_attention, report.section_of("name", study)
    limit = run.limit(study.outcomes[0].cell.limit)
    assert [goal.name for goal in limit.target.goals] == ["latency of decode", "kv_cache"]
    for outcome in study.outcomes:
        kept = np.array(outcome.counts)[attention].sum() / study.space.units[attention].sum()
        row = next(
            line for line in text.splitlines() if line.startswith(f"| {outcome.cell.method} |")
        )
        assert kept <= 0.7 and row.endswith(f"| {kept:.2f} |")


def test_the_page_is_that_of_the_records() -> None:
    page = report.page({path.stem: Study.load(path) for path in RECORDS})
    assert RECORDS and not stale({"decoders.md": page}, report.ROOT / "docs", "decoders.md")
