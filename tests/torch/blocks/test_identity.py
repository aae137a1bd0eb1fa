"""What tells models apart: all of their weights for statistics, and class and shapes for times."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from torch import nn

from cahp_opt import HeadStats, LatencyTable, Selection
from cahp_opt.cli import main
from cahp_opt.costs.goals import LatencyGoal, ResourceGoal
from cahp_opt.costs.profile import Profile
from cahp_opt.costs.target import Target
from cahp_opt.identity import coverage_note, difference, structure_of
from cahp_opt.objectives import Modular
from cahp_opt.runs.report import REPORT_FILE
from cahp_opt.solvers import TopK
from cahp_opt.torch import (
    calibrate,
    count_resources,
    find_attention,
    from_pretrained,
    measure_latency,
    save_pretrained,
    select_measured,
    selection_of,
    slice_heads,
)
from cahp_opt.torch.blocks.fingerprint import fingerprint, mismatch, output_fingerprint, structure
from cahp_opt.torch.checkpoints.model_loading import load_model
from cahp_opt.torch.pipeline.applying import check_same_model

EARLIER = Path(__file__).parents[2] / "earlier"
"""Records of a tiny BERT that the release before identities covered all weights wrote."""


def stats_of(model: Any) -> HeadStats:
    return calibrate(model, [tiny.batch()], gradient_examples=2, sensitivity_examples=0)


def selected(stats: HeadStats) -> Selection:
    kept = np.ones(stats.space.n, dtype=bool)
    kept[0] = False
    return replace(Selection.from_kept(stats.space, kept), provenance={"model": stats.model})


@pytest.mark.parametrize("family", [tiny.BERT, tiny.GPT2, tiny.LLAMA_GQA], ids=lambda f: f.name)
def test_every_weight_counts(family: tiny.Family) -> None:
    model = family.build()
    before = fingerprint(model)
    for name, weight in model.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.view(-1)[-1] += 1
            assert fingerprint(model) != before, name
            weight.copy_(kept)
    assert fingerprint(model) == before and mismatch(model, before) is None


def test_buffers_that_are_saved_count_too() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = fingerprint(model)
    model[1].running_mean += 1
    assert fingerprint(model) != before
    model[1].running_mean -= 1
    model.register_buffer("scratch", torch.ones(2), persistent=False)
    assert fingerprint(model) == before


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about peft
def test_a_merged_adapter_makes_another_model() -> None:
    peft = pytest.importorskip("peft")
    model = tiny.BERT.build()
    wanted = {"target_modules": ["query", "value"], "init_lora_weights": False}
    merged = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, **wanted))
    merged = merged.merge_and_unload()
    assert output_fingerprint(merged) == output_fingerprint(model)  # all that was looked at before
    mine, theirs = stats_of(model), stats_of(merged)
    with pytest.raises(ValueError, match=r"two different models.*weights differ: \w{32} against"):
        mine + theirs
    check_same_model(find_attention(model), selected(mine))
    with pytest.raises(ValueError, match=r"made for another model \(weights differ: \w{32} aga"):
        check_same_model(find_attention(merged), selected(mine))


Change = Callable[[Any, Path], Any]

SAME: dict[str, Change] = {
    "a copy": lambda model, path: copy.deepcopy(model),
    "training": lambda model, path: model.train().requires_grad_(False),
    "saved and loaded": lambda model, path: (
        model.save_pretrained(str(path)),
        type(model).from_pretrained(str(path)),
    )[1],
    "in shards": lambda model, path: (
        model.save_pretrained(str(path), max_shard_size="20KB"),
        type(model).from_pretrained(str(path)),
    )[1],
}


def _strided(model: Any, path: Path) -> Any:
    for weight in model.parameters():
        weight.data = weight.data.clone().T.contiguous().T if weight.ndim == 2 else weight.data
    return model


def _untied(model: Any, path: Path) -> Any:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def _offloaded(model: Any, path: Path) -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, torch.device("cpu"))


def _on_disk(model: Any, path: Path) -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.disk_offload(model, str(path), torch.device("cpu"))


SAME |= {"strided": _strided, "untied": _untied, "offloaded": _offloaded, "on disk": _on_disk}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_same_weights_are_the_same_model(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Wherever and however they lie; GPT-2 has tied ones."""
    model = tiny.GPT2.build().to(dtype)
    before = fingerprint(model)
    changed = SAME[name](model, tmp_path)
    if dtype is torch.float32 or ("load" not in name and name != "in shards"):
        assert fingerprint(changed) == before
    assert structure(changed) == structure_of(before)


def test_what_a_checkpoint_lacks_is_the_same_in_every_load(tmp_path: Path) -> None:
    """Encoders are often saved without their pooler; the random one must not make another model."""
    bare = transformers.BertModel(tiny.BERT.config(), add_pooling_layer=False)
    bare.save_pretrained(str(tmp_path))
    drawn = torch.random.get_rng_state()
    first = fingerprint(load_model(str(tmp_path), device="cpu"))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    torch.rand(1)
    assert fingerprint(load_model(str(tmp_path), device="cpu")) == first


def test_what_is_not_in_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not in memory .* on the meta device"):
        fingerprint(tiny.BERT.build().to("meta"))


@pytest.mark.filterwarnings("ignore")  # torch announces the end of its own quantisation
def test_packed_weights_count() -> None:
    quantise: Any = torch.ao.quantization.quantize_dynamic
    names = [
        fingerprint(quantise(tiny.BERT.build(seed=seed), {nn.Linear}, dtype=torch.qint8))
        for seed in (0, 0, 1)
    ]
    assert names[0] == names[1] != names[2]


class _Pair(torch.Tensor):
    """A tensor made of two, as quantisation packs them."""

    codes: torch.Tensor
    steps: torch.Tensor

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "steps"], None


def _pair(scale: float) -> nn.Module:
    packed = torch.zeros(2, 2).as_subclass(_Pair)
    packed.codes, packed.steps = torch.ones(2, 2, dtype=torch.int8), torch.tensor(scale)
    model = nn.Module()
    model.register_buffer("weight", packed)
    return model


def test_tensors_that_pack_several_count_whole() -> None:
    assert fingerprint(_pair(1.0)) == fingerprint(_pair(1.0)) != fingerprint(_pair(2.0))


def test_times_go_by_class_and_shapes() -> None:
    model = tiny.BERT.build()
    same = (tiny.BERT.build(seed=1), tiny.BERT.build().bfloat16(), tiny.BERT.build().to("meta"))
    assert {structure(m) for m in same} == {structure(model)}
    roberta = transformers.RobertaModel(tiny.ROBERTA.config())
    others = (tiny.BERT.build(num_labels=5), tiny.BERT.build(intermediate_size=48), roberta)
    for other in (*others, tiny.BERT.build(bare=True)):
        assert structure(other) != structure(model)
    names = [structure(m).split("/")[0] for m in others]
    assert names == [
        "BertForSequenceClassification",
        "BertForSequenceClassification",
        "RobertaModel",
    ]


def profile_of(model: Any) -> Profile:
    batch = tiny.batch(padded=False)
    table = measure_latency(model, batch, repeats=1)
    return Profile(table.space, {"prefill": table}, count_resources(model, batch))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return profile_of(tiny.BERT.build())


OTHERS: dict[str, Callable[[], Any]] = {
    "wider": lambda: tiny.BERT.build(intermediate_size=48),
    "more labels": lambda: tiny.BERT.build(num_labels=5),
}


@pytest.mark.parametrize("name", OTHERS)
def test_profiles_of_other_models_with_equal_blocks_are_refused(
    name: str, profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = OTHERS[name]()
    space = find_attention(model).space
    assert space == profile.space
    goals = (LatencyGoal.parse("9"),), (ResourceGoal.parse("parameters", "0.9"),)
    for own in goals:
        with pytest.raises(ValueError, match=r"of another model \(shapes of the weights differ"):
            Target(own).budget(space, profile, fingerprint(model))
        assert Target(own).budget(space, profile, fingerprint(tiny.BERT.build(seed=3)))
    with pytest.raises(ValueError, match=r"'prefill' is of another model"):
        select_measured(model, Modular(np.ones(space.n)), profile, Target(goals[0]), {}, TopK())
    stats_of(model).save(tmp_path / "stats")
    profile.save(tmp_path / "profile")
    records = ["--stats", str(tmp_path / "stats"), "--latency-table", str(tmp_path / "profile")]
    out = ["--output", str(tmp_path / "selection"), "--objective", "salience"]
    assert main(["select", *records, *out, "--latency", "9s"]) == 2
    assert "is of another model (shapes of the weights differ" in capsys.readouterr().err
    assert not (tmp_path / "selection").exists()


def test_profiles_know_their_model_and_hold_one_alone(profile: Profile, tmp_path: Path) -> None:
    assert profile.model == structure(tiny.BERT.build())
    profile.save(tmp_path / "profile")
    found = Profile.load(tmp_path / "profile")
    assert found.model == profile.model
    assert {t.model for t in found.resources.values()} == {profile.model}
    other = count_resources(tiny.BERT.build(num_labels=5))
    with pytest.raises(ValueError, match=r"'parameters' is of another model"):
        replace(profile, resources=other)
    with pytest.raises(ValueError, match=r"classes differ: BertModel against BertForSeq"):
        profile.check("BertModel/0123456789abcdef/0")


def test_what_is_unknown_is_not_compared() -> None:
    known = "BertModel/0123456789abcdef/00"
    assert difference("", known) is None and difference(known, structure_of(known)) is None
    assert difference(known, "BertModel/0123456789abcdef/01") == "weights differ: 00 against 01"
    assert "earlier release" in (difference(known, "0123456789abcdef") or "")
    assert difference("0" * 16, "1" * 16) == f"weights differ: {'0' * 16} against {'1' * 16}"
    assert coverage_note("it", known) is None and coverage_note("it", "") is None


# -- records of the release before -----------------------------------------------------------------


def dense() -> Any:
    model: Any = transformers.BertForSequenceClassification.from_pretrained(str(EARLIER / "dense"))
    return model.eval()


def test_statistics_of_the_release_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = HeadStats.load(EARLIER / "stats.safetensors")
    assert stats.model == output_fingerprint(dense()) and (stats + stats).examples == 64
    assert mismatch(dense(), stats.model) is None
    ids = torch.arange(24).view(4, 6) % 12
    new = calibrate(dense(), [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    with pytest.raises(ValueError, match="one of them was written by an earlier release"):
        stats + new
    out = ["--output", str(tmp_path / "selection"), "--objective", "salience"]
    told = [*out, "--stats", str(EARLIER / "stats.safetensors")]
    assert main(["select", *told, "--heads", "3"]) == 0
    notes = capsys.readouterr().err
    assert "note: the record of the statistics was written by an earlier release" in notes
    told += ["--latency-table", str(EARLIER / "latency.json"), "--latency", "9s"]
    assert main(["select", *told]) == 0
    notes = capsys.readouterr().err
    assert "note: the latency table does not say which model it is of" in notes
    stats.save(tmp_path / "again")
    assert HeadStats.load(tmp_path / "again").model == stats.model


def test_profiles_of_the_release_before(tmp_path: Path) -> None:
    found = Profile.load(EARLIER / "latency.json")
    assert found.model == "" and set(found.resources) == {"parameters", "memory"}
    found.check(fingerprint(dense()))
    assert LatencyTable.load(EARLIER / "table.json").provenance.model == ""
    goals = LatencyGoal.parse("9"), ResourceGoal.parse("parameters", "0.99")
    counted = replace(found, latency={})
    for old in (found, counted):
        told = Target(goals if old is found else goals[1:]).remarks(old)
        assert any("does not say which model it is of" in remark for remark in told)
    new = replace(counted, resources=count_resources(dense()))
    assert Target(goals[1:]).remarks(new) == []
    found.save(tmp_path / "again")
    assert (
        Profile.load(tmp_path / "again").latency["prefill"].dense == found.latency["prefill"].dense
    )


def test_selections_of_the_release_before(tmp_path: Path) -> None:
    selection = Selection.load(EARLIER / "selection.json")
    check_same_model(find_attention(dense()), selection)
    other = dense()
    other.bert.encoder.layer[1].attention.output.dense.weight.data.mul_(2)
    with pytest.raises(ValueError, match="made for another model"):
        check_same_model(find_attention(other), selection)
    shutil.copytree(EARLIER / "dense", tmp_path / "dense")
    apply = ["apply", str(tmp_path / "dense"), "--selection", str(EARLIER / "selection.json")]
    apply += ["--output-dir", str(tmp_path / "out"), "--recovery", "none", "--sequence-length", "6"]
    apply += ["--repeats", "1"]
    assert main(apply) == 0
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert any("names the output projections of its model alone" in n for n in report["notes"])


@pytest.mark.parametrize("name", ["pruned", "shards"])
def test_folders_of_the_release_before(name: str, tmp_path: Path) -> None:
    loaded = from_pretrained(EARLIER / name)
    selection = Selection.load(EARLIER / "selection.json")
    small = slice_heads(dense(), selection)
    mine, theirs = loaded.state_dict(), small.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    found = selection_of(loaded)
    assert found is not None and found.heads() == selection.heads()
    save_pretrained(loaded, tmp_path / "again")
    assert fingerprint(from_pretrained(tmp_path / "again")) == fingerprint(loaded)
