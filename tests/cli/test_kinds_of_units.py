"""The command line over attention heads and feed-forward neurons together."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="models need PyTorch")

import tiny_models
from command_line import QUICK, SMALL, make_tokenizer, prune, refused, save_model
from safetensors.numpy import load_file
from stand_ins import stand_in_for_the_demo

from cahp_opt import HeadStats, LatencyTable, Profile, Selection, Unit
from cahp_opt.cli import main
from cahp_opt.costs.budget import BudgetError
from cahp_opt.runs.report import Report
from cahp_opt.torch import calibrate, find_prunable, from_pretrained
from cahp_opt.torch.blocks import finder
from cahp_opt.torch.blocks.finder import FeedForwardBlock, blocks_cut
from cahp_opt.torch.checkpoints.model_loading import load_model, load_tokenizer
from cahp_opt.torch.pipeline import applying, profiles, pruning_run
from cahp_opt.torch.pipeline.final_times import final_times
from cahp_opt.torch.slicing.neuron_bypass import is_skipped
from cahp_opt.torch.slicing.skipped_attention import Bypass
from cahp_opt.torch.texts.encoding import encode

pytestmark = pytest.mark.usefixtures("threads")

BOTH = "attention heads and feed-forward neurons"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latency table in which every unit of either kind takes as long."""

    def measure(prunable: Any, batch: Any, **options: Any) -> LatencyTable:
        space = prunable.space
        return LatencyTable(space, 1e-3, tuple(1e-3 * np.arange(u + 1) for u in space.units))

    monkeypatch.setattr(profiles, "time_blocks", measure)


def first_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.partition("\n")[0]


def test_both_kinds_at_once_and_by_stages(
    model: Path, text: Path, tmp_path: Path, table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, staged = tmp_path / "whole", tmp_path / "staged"
    assert prune(model, whole, "--text", text, "--parameters", "0.7", "--neuron-group", "5") == 0
    assert first_line(capsys) == f"pruned: {BOTH}, because both count for `--parameters 0.7`"
    chosen = Selection.load(whole / "cahp_selection.json")
    units = {block.unit for block in chosen.space.blocks}
    assert units == {Unit.HEAD, Unit.NEURON_GROUP}
    removed = {
        unit: int(
            sum(
                block.units - kept
                for block, kept in zip(chosen.space.blocks, chosen.counts, strict=True)
                if block.unit is unit
            )
        )
        for unit in units
    }
    assert min(removed.values()) > 0
    report = Report.read(whole / "report.json")
    assert report["parameters"][1] <= 0.7 * report["parameters"][0]
    assert report["fidelity"]["after"]["cosine_distance"] < 1
    assert sum(p.numel() for p in from_pretrained(whole).parameters()) == report["parameters"][1]

    stats, costs, selection = (tmp_path / n for n in ("s.safetensors", "l.json", "sel.json"))
    measured = ["--text", str(text), *SMALL[:4], "--threads", "1", "--neuron-group", "5"]
    assert main(["calibrate", str(model), "--output", str(stats), *measured]) == 0
    assert first_line(capsys) == f"measured: {BOTH}, because limits may be about either"
    timed = ["--workload", "prefill:2x8", "--repeats", "1", "--neuron-group", "5"]
    assert main(["latency", str(model), "--output", str(costs), *timed]) == 0
    assert first_line(capsys) == f"measured: {BOTH}, because limits may be about either"
    records = ["--stats", str(stats), "--latency-table", str(costs)]
    assert main(["select", *records, "--parameters", "0.7", "--output", str(selection)]) == 0
    assert first_line(capsys) == f"chosen from: {BOTH}, as measured"
    again = Selection.load(selection)
    assert again.space == chosen.space and np.array_equal(again.kept, chosen.kept)
    apply = ["apply", str(model), "--selection", str(selection), "--text", str(text)]
    assert main([*apply, "--output-dir", str(staged), *QUICK]) == 0
    mine, theirs = (load_file(folder / "cahp_weights.safetensors") for folder in (staged, whole))
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(array, theirs[name]) for name, array in mine.items())


def skipped(model: Any) -> list[bool]:
    """Whether each block without kept units is skipped."""
    ghosts = [block for block in blocks_cut(model) if block.ghost]
    return [
        is_skipped(block)
        if isinstance(block, FeedForwardBlock)
        else isinstance(vars(block.module).get("forward"), Bypass)
        for block in ghosts
    ]


def test_blocks_of_both_kinds_may_be_emptied(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are skipped when the model is timed and when it is loaded, and it says the same then."""
    timed: list[tuple[Any, list[bool]]] = []

    def times(dense: Any, small: Any, *others: Any, **options: Any) -> Any:
        timed.append((small, skipped(small)))
        return final_times(dense, small, *others, **options)

    monkeypatch.setattr(applying, "final_times", times)
    limits = ["--prune", "both", "--heads", "2", "--neurons", "0.1", "--neuron-group", "5"]
    assert prune(model, tmp_path / "out", "--text", text, *limits, "--minimum", "0") == 0
    chosen = Selection.load(tmp_path / "out" / "cahp_selection.json")
    empty, attention = chosen.counts == 0, chosen.space.of_attention
    assert empty[attention].any() and empty[~attention].any() and not empty.all()
    ((small, when_timed),) = timed
    loaded = from_pretrained(tmp_path / "out")
    assert when_timed == skipped(loaded) == [True] * int(empty.sum())
    mine, theirs = (tiny_models.run(of, tiny_models.batch()) for of in (loaded, small))
    assert (mine == theirs).all()
    for name, weight in small.named_parameters():
        assert (loaded.get_parameter(name) == weight).all(), name


def test_neurons_stand_in_the_order_of_their_prices_before_gates_are_taken(
    model: Path, text: Path, tmp_path: Path
) -> None:
    """The statistics of gates are those of the groups, and all others are as they would be anyway."""
    out, given = tmp_path / "stats.safetensors", ["--text", str(text), *SMALL[:4], "--threads", "1"]
    numbers = ["--gradient-examples", "8", "--objective", "gauss-newton", "--prune", "neurons"]
    assert main(["calibrate", str(model), "--output", str(out), *given, *numbers]) == 0
    stats = HeadStats.load(out)
    assert stats.salience.count == 8
    assert all(block.order != tuple(sorted(block.order or ())) for block in stats.space.blocks)
    dense = load_model(str(model))
    grouped = find_prunable(dense, heads=False).grouped(stats.space)
    assert grouped.space == stats.space
    from cahp_opt.runs.plan import TextOptions

    texts = TextOptions(text=text, held_out=10).read(0)
    batches = encode(
        texts.calibration, load_tokenizer(str(model)), dense, batch_size=16, max_length=128
    )
    plain = calibrate(grouped, batches, gradient_examples=8)
    for name in ("gauss_newton", "salience"):
        mine, theirs = stats.statistics[name].arrays(), plain.statistics[name].arrays()
        for part, array in mine.items():
            np.testing.assert_allclose(array, theirs[part], rtol=1e-5, atol=1e-9)


def test_a_limit_on_heads_leaves_the_neurons_of_records_of_both(
    model: Path, text: Path, tmp_path: Path
) -> None:
    stats, written = tmp_path / "stats.safetensors", tmp_path / "selection.json"
    measured = ["--text", str(text), *SMALL[:4], "--threads", "1"]
    assert main(["calibrate", str(model), "--output", str(stats), *measured]) == 0
    assert main(["select", "--stats", str(stats), "--heads", "6", "--output", str(written)]) == 0
    found = Selection.load(written)
    attention = found.space.of_attention
    assert found.counts[attention].sum() == 6
    assert (found.counts[~attention] == found.space.units[~attention]).all()
    compare = ["compare", "--stats", str(stats), "--solver", "greedy", "--seeds", "1"]
    assert main([*compare, "--output-dir", str(tmp_path / "compared")]) == 0


def test_a_goal_below_the_floor_of_heads_names_the_floor_of_both(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*limit: str) -> int:
        return prune(model, tmp_path / "out", "--text", text, "--prune", "heads", *limit)

    parts = ("cannot be met", "`--prune both` can go down to 0.", "of the unpruned parameters.")
    refused(capsys, 2, *parts, run=partial(run, "--parameters", "0.3"))
    parts = ("cannot be met", "`--prune both` can go down to ", "of the unpruned time.")
    refused(capsys, 2, *parts, run=partial(run, "--latency", "0.0001"))


def test_a_model_without_known_feed_forward_parts(
    model: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neurons by default become heads, with the reason; neurons that were asked for are refused."""
    reason = ("layer.0.mlp", "its experts stand behind a router")
    monkeypatch.setattr(finder, "_feed_forward", lambda *given: ([], [reason]))
    table = tmp_path / "latency.json"
    timed = ["latency", str(model), "--workload", "prefill:2x8", "--repeats", "1"]
    assert main([*timed, "--output", str(table), "--neuron-group", "4"]) == 0
    found = capsys.readouterr()
    assert found.out.startswith(
        "measured: attention heads, because no feed-forward part of this model is understood "
        "(layer.0.mlp: its experts stand behind a router)\n"
    )
    assert "note: `--neuron-group` does nothing here: no neurons are pruned." in found.err
    assert {block.unit for block in Profile.load(table).space.blocks} == {Unit.HEAD}
    asked = partial(prune, model, tmp_path / "out", "--text", text, "--latency", "0.9")
    said = ("`--prune both` is about feed-forward parts", "behind a router", "`--prune heads`")
    refused(capsys, 2, *said, run=partial(asked, "--prune", "both"))
    refused(capsys, 2, "without any feed-forward", run=partial(asked, "--prune", "neurons"))


def test_groups_that_no_part_can_be_put_into_are_refused(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[str | Path] = ["--text", text, "--latency", "0.9", "--neuron-group", "7"]
    said = ("`--neuron-group` is 7", "give a divisor of 40")
    refused(capsys, 2, *said, run=partial(prune, model, tmp_path / "out", *given))


def test_units_of_attention_do_nothing_for_neurons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder: Any = tiny_models.LLAMA_GQA.build(bare=True, num_key_value_heads=2)
    decoder.save_pretrained(tmp_path / "decoder")
    make_tokenizer().save_pretrained(tmp_path / "decoder")
    measure = ["latency", str(tmp_path / "decoder"), "--units", "query-slots", "--prune", "neurons"]
    timed = ["--workload", "prefill:1x4", "--repeats", "1", "--output", str(tmp_path / "l.json")]
    assert main([*measure, *timed]) == 0
    assert "`--units query-slots` does nothing here: no attention is" in capsys.readouterr().err


def test_save_model_is_of_both_kinds(tmp_path: Path) -> None:
    """What the tests above rest on."""
    found = find_prunable(load_model(str(save_model(tmp_path / "model"))))
    assert len(found.attention) == len(found.feed_forward) == 3


@pytest.mark.parametrize(("prune_what", "limit"), [((), "0.7"), (("--prune", "heads"), "0.8")])
def test_the_demonstration_asks_heads_alone_for_no_more_than_they_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prune_what: tuple[str, ...], limit: str
) -> None:
    stand_in_for_the_demo(monkeypatch, tmp_path)
    asked: list[str] = []

    def run(named: Any, texts: Any, plan: Any, *others: Any, **more: Any) -> None:
        asked.extend(str(goal) for goal in plan.target.goals)
        raise BudgetError("enough")

    monkeypatch.setattr(pruning_run, "run_pipeline", run)
    with suppress(BudgetError):
        main(["demo", "--output-dir", str(tmp_path / "out"), *prune_what])
    assert asked == [limit]
