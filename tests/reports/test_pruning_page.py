"""The page of a pruning: what it says is in the record, whatever the record lacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pages
import pytest

from cahp_opt import Block, Check, HeadSpace, Provenance, Round, Selection, Unit
from cahp_opt.reports.pruning_page import pruning_page, short_name
from cahp_opt.reports.wording import (
    certificate_in_words,
    figure_meaning,
    gap_in_words,
    number,
    share_of_whole,
    value_in_words,
)
from cahp_opt.runs.recovery import Recovery
from cahp_opt.runs.report import FidelityReport, Report
from cahp_opt.solver import Status

SPACE = HeadSpace(
    (
        Block("layer.0.attention", 4),
        Block("layer.0.mlp", 8, Unit.NEURON_GROUP, tuple(range(512))),
        Block("layer.1.attention", 40),
        Block("layer.1.mlp", 8, Unit.NEURON_GROUP, tuple(range(512))),
    )
)
KEPT = np.arange(SPACE.n) % 4 == 0
CHECK = Check(
    predicted=0.0201, measured=0.0207, dense_predicted=0.0302, dense_measured=0.0311, limit=0.021
)
MISSED = replace(CHECK, measured=0.0251)
WHERE = Provenance(
    device="a processor", dtype="float32", batch=8, sequence_length=128, threads=2, versions={"torch": "2.13"}
)  # fmt: skip


def report() -> Report:
    counts = tuple(SPACE.counts(KEPT).tolist())
    chosen = Selection(
        SPACE,
        KEPT,
        3.2,
        3.4,
        status=Status.FEASIBLE,
        certificate="dynamic programming over blocks",
        provenance={"objective": "explained-output", "solver": "dynamic-program", "model": "0123"},
        rounds=(
            Round(counts=counts, goals={"latency": MISSED}),
            Round(counts=counts, goals={"latency": CHECK}),
        ),
        whole=3.7,
    )
    return Report(
        "owner/name",
        chosen,
        {"prefill": CHECK},
        {"prefill": WHERE},
        {"latency": CHECK},
        FidelityReport(
            256,
            {"kl": 0.3456, "agreement": 0.7123, "dense_accuracy": 0.9012, "accuracy": 0.7034},
            {"kl": 0.0567, "agreement": 0.9345, "dense_accuracy": 0.9012, "accuracy": 0.8956},
        ),
        (1000, 612),
        1.5e-6,
        1500,
        {"calibrate": 12.3},
        {"config.json": 4321},
        ("a note for <readers>",),
        Recovery.REFIT,
        seed=17,
        command="cahp prune owner/name --latency 0.675",
    )


def test_what_the_page_says_is_in_the_record() -> None:
    words = pages.words_of(pruning_page(report()).html())
    for part in (
        "It keeps 11 of 44 heads and 256 of 1,024 neurons.",
        "It takes 0.666 of the unpruned time, and 0.675 were promised (met, 1.4 % below).",
        "Its accuracy is 0.8956, the unpruned model's 0.9012 (0.7034 before the refit), on 256 texts",
        "KL divergence, nats",
        "0.3456",
        "0.0567",
        "20.7 ms",
        "31.1 ms",
        "+19.5 %",  # over the limit in the first round
        "86.5 % of the unpruned model's explained output",
        "No other keep-set within the budget has over 6.2 % more explained output than this one.",
        "dynamic programming over blocks",
        "It is about explained-output",
        "a note for <readers>",
        "8 x 128 tokens, float32, a processor, 2 threads",
        "torch 2.13",
        "17",
        "cahp prune owner/name --latency 0.675",
        "1,500",
        "4,321",
        "61.2 %",
    ):
        assert part in words, part


def test_units_are_drawn_one_by_one_unless_there_are_too_many() -> None:
    html = pruning_page(report()).html()
    assert html.count('<i class="kept"></i>') == 1 and html.count("<i></i>") == 3
    assert (
        html.count('<i style="width:25.00%"></i>') == 3
    )  # 40 heads, and the neurons of both layers


def test_names_cannot_leave_their_place() -> None:
    name = "<b>&\"'</b><script>x</script>"
    odd = replace(report(), model=name, command=name, notes=(name,))
    html = pruning_page(odd).html()
    assert "<b>&" not in html and html.count("<script>") == 1
    assert name in pages.words_of(html)


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ({"fidelity": None}, "was not measured, because no texts were kept back"),
        ({"latency": {}, "where": {}, "goals": {}}, "It keeps 11 of 44 heads"),
        ({"goals": {}}, "It takes 0.666 of the unpruned time."),
        ({"notes": (), "files": {}, "seconds": {}, "command": ""}, "outputs equal"),
        (
            {"fidelity": FidelityReport(10, {"cosine_distance": 0.123}), "recovery": Recovery.NONE},
            "Its cosine distance is 0.123, on 10 texts",
        ),
        ({"selection": Selection.from_kept(SPACE, KEPT)}, "nothing is proved about it"),
        ({"goals": {"latency": MISSED}}, "missed by 19.5 %"),
        (
            {"goals": {"latency": Check(measured=0.02, dense_measured=0.03)}},
            "It takes 0.667 of the unpruned time.",
        ),
    ],
    ids=["texts", "latency", "goals", "the rest", "recovery", "objective", "promise", "limit"],
)
def test_what_is_missing_is_said_or_left_out(missing: dict[str, object], told: str) -> None:
    found = replace(report(), **missing)  # type: ignore[arg-type]
    words = pages.words_of(pruning_page(found).html())
    assert told in words and "nan" not in words.split() and "inf" not in words.split()


def test_shares_are_never_rounded_up_to_all() -> None:
    assert share_of_whole(0.987654) == "98.8 %"
    assert share_of_whole(0.99999) == "99.999 %"
    assert share_of_whole(0.99999999) == "more than 99.999 %"
    assert share_of_whole(1.0) == "100.0 %"
    assert share_of_whole(np.nan) == number(np.nan) == "-"


def test_a_certificate_says_what_it_proves_and_what_not() -> None:
    chosen = report().selection
    assert gap_in_words(replace(chosen, bound=3.2)).startswith("proved: no other keep-set")
    assert "this one is optimal" in certificate_in_words(replace(chosen, bound=3.2))[0]
    unbounded = replace(chosen, bound=np.inf, certificate="not submodular")
    assert gap_in_words(unbounded) == "nothing is proved about other keep-sets"
    assert "not submodular" in certificate_in_words(unbounded)[0]
    assert value_in_words(replace(chosen, whole=np.nan)) == "explained output: 3.2"
    own = replace(chosen, provenance={"objective": "mine:Objective"}, whole=np.nan)
    assert value_in_words(own) == "value of mine:Objective: 3.2"


def test_every_figure_of_neighbours_has_its_number() -> None:
    assert figure_meaning("neighbour_agreement_at_7").name == "7 nearest neighbours"
    assert figure_meaning("no_such_figure").name == "no such figure"


def test_long_paths_of_models_are_cut() -> None:
    assert short_name("/a/b/model") == "model"
    assert short_name("owner/name") == "owner/name"
