"""A study in the terminal."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import studies_by_hand
from rich.console import Console

from cahp_opt.cli.study_tables import study_tables
from cahp_opt.studies.outcome import Cell
from cahp_opt.studies.study import Study


def shown(study: Study) -> str:
    """What stands in a wide terminal."""
    console = Console(file=StringIO(), width=200)
    console.print(*study_tables(study))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_brackets_in_names_and_reasons_are_shown_as_they_are() -> None:
    study = studies_by_hand.study(seeds=1)
    first = study.outcomes[0]
    named = replace(first, cell=first.cell._replace(method="mine[/old]", limit="0.6"))
    failed = {Cell("other[b]", "0.7", "none", 0): "logits of shape [batch, tokens], not [/x]."}
    told = shown(replace(study, outcomes=(*study.outcomes, named), missing=failed))
    for words in ("mine[/old]", "other[b]", "logits of shape [batch, tokens], not [/x]."):
        assert words in told


def test_the_unpruned_model_is_named_where_its_figure_says_something() -> None:
    study = studies_by_hand.study(seeds=1)
    assert "(accuracy of the unpruned model 0." in shown(study)
    without = [
        replace(o, scores=replace(o.scores, arrays={"kl": o.scores.arrays["kl"]}))
        for o in study.outcomes
    ]
    unlabelled = replace(study.unpruned, arrays={"kl": study.unpruned.arrays["kl"]})
    assert "unpruned" not in shown(replace(study, unpruned=unlabelled, outcomes=tuple(without)))
