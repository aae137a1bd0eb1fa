"""Embedders are judged by the vector that they hand out: as the files beside them say, or as asked."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from batches_by_hand import collate, texts
from command_line import QUICK, refused, save_model, sentences
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from sentence_folders import describe
from torch import Tensor

from cahp_opt.cli import main
from cahp_opt.demo import demo_model
from cahp_opt.objectives import Quadratic
from cahp_opt.runs.report import Report
from cahp_opt.selection import Selection
from cahp_opt.solvers import LocalSearch
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch import (
    TokenWeights,
    calibrate,
    fidelity_of,
    find_attention,
    from_pretrained,
    save_pretrained,
    select_staged,
    slice_heads,
)
from cahp_opt.torch.evaluation.embedders import pooled
from cahp_opt.torch.evaluation.evaluation import evaluate
from cahp_opt.torch.evaluation.fidelity import ClassLogits, PooledEmbedding, embedding_notes

CLIP = tiny_models.named("clip")
BY_HAND: dict[Pooling, Callable[[Tensor], Tensor]] = {
    Pooling.MEAN: lambda z: z.mean(dim=0),
    Pooling.CLS: lambda z: z[0],
    Pooling.LAST: lambda z: z[-1],
    Pooling.MAX: lambda z: z.amax(dim=0),
    Pooling.WEIGHTED_MEAN: lambda z: (
        torch.arange(1, len(z) + 1).to(z) @ z / (len(z) * (len(z) + 1) / 2)
    ),
    Pooling.MEAN_SQRT_LEN: lambda z: z.sum(dim=0) / len(z) ** 0.5,
}
LEGACY = {
    "cls_token": Pooling.CLS,
    "mean_tokens": Pooling.MEAN,
    "max_tokens": Pooling.MAX,
    "mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LEN,
    "weightedmean_tokens": Pooling.WEIGHTED_MEAN,
    "lasttoken": Pooling.LAST,
}
NEWER = {
    "cls": Pooling.CLS,
    "mean": Pooling.MEAN,
    "max": Pooling.MAX,
    "mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LEN,
    "weightedmean": Pooling.WEIGHTED_MEAN,
    "lasttoken": Pooling.LAST,
}


def legacy(*names: str) -> dict[str, Any]:
    """A configuration with a flag for every mode."""
    return {f"pooling_mode_{name}": name in names for name in {**LEGACY, **dict.fromkeys(names)}}


def cosine_distance(one: Tensor, other: Tensor) -> float:
    a, b = one.detach().double(), other.detach().double()
    return 1 - float(a @ b / (a.norm() * b.norm()))


def loaded(folder: Path) -> Any:
    """The stock model of a folder."""
    from transformers import AutoModel

    auto: Any = AutoModel
    return auto.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """A folder of a model of its own for every test."""
    return Path(shutil.copytree(plain, tmp_path / "model"))


@pytest.mark.parametrize("pooling", list(Pooling), ids=lambda p: p.value)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_on_either_side_never_counts(pooling: Pooling, left: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 5, generator=generator) for n in (4, 1, 6)]
    hidden, real = torch.full((3, 6, 5), torch.nan), torch.zeros(3, 6, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(6 - len(row), 6) if left else slice(0, len(row))
        hidden[i, where], real[i, where] = row, True
    expected = torch.stack([BY_HAND[pooling](row) for row in rows])
    torch.testing.assert_close(pooled(hidden, real, pooling), expected)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        *((legacy(name), pooling) for name, pooling in LEGACY.items()),
        *(({"pooling_mode": name}, pooling) for name, pooling in NEWER.items()),
        ({"pooling_mode": ["cls"]}, Pooling.CLS),
        ({"pooling_mode": "cls", **legacy("mean_tokens")}, Pooling.CLS),
        (legacy(), Pooling.MEAN),
        ({}, Pooling.MEAN),
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["modules", "bare"])
def test_the_files_beside_a_model_decide(
    folder: Path, config: dict[str, Any], expected: Pooling, listed: bool
) -> None:
    describe(folder, {"word_embedding_dimension": 32, **config}, listed=listed)
    model = loaded(folder)
    assert fidelity_of(model) == PooledEmbedding(expected)
    assert fidelity_of(model, Pooling.MAX) == PooledEmbedding(Pooling.MAX)


def test_without_files_it_is_the_mean(plain: Path) -> None:
    assert fidelity_of(loaded(plain)) == PooledEmbedding(Pooling.MEAN)
    assert fidelity_of(tiny_models.BERT.build(bare=True)) == PooledEmbedding()


class Missing(EntryNotFoundError):
    """The repository has no such file."""

    def __init__(self) -> None:
        Exception.__init__(self)


def test_a_repository_decides_as_a_folder_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(folder, legacy("cls_token"))
    model = tiny_models.BERT.build(bare=True)
    model.config._name_or_path, model.config._commit_hash = "someone/embedder", "0" * 40
    asked: list[tuple[str, str | None]] = []

    def fetch(name: str, file: str, *, revision: str | None) -> str:
        assert name == "someone/embedder"
        asked.append((file, revision))
        if (folder / file).is_file():
            return str(folder / file)
        raise Missing

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert fidelity_of(model) == PooledEmbedding(Pooling.CLS)
    assert asked[:2] == [("modules.json", "0" * 40), ("1_Pooling/config.json", "0" * 40)]
    shutil.rmtree(folder / "1_Pooling")
    (folder / "modules.json").unlink()
    fidelity = fidelity_of(model)
    assert fidelity == PooledEmbedding(Pooling.MEAN) and not embedding_notes(model, fidelity)

    def unreachable(*args: object, **options: object) -> str:
        raise LocalEntryNotFoundError("the connection is down")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    fidelity = fidelity_of(model)
    assert fidelity == PooledEmbedding(Pooling.MEAN)
    (note,) = embedding_notes(model, fidelity)
    assert "someone/embedder" in note and "could not be looked up, so the mean" in note


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        (legacy("cls_token", "mean_tokens"), (), "pools by cls and mean"),
        ({"pooling_mode": ["cls", "max"]}, (), "pools by cls and max"),
        ({"pooling_mode": "attention"}, (), "pools by attention"),
        (legacy("of_some_kind"), (), "pools by .*pooling_mode_of_some_kind"),
        (legacy("mean_tokens"), ("Dense",), "of the type Dense"),
        (legacy("mean_tokens"), ("WeightedLayerPooling",), "of the type WeightedLayerPooling"),
        (legacy("mean_tokens"), ("Pooling",), "names 2 modules that pool"),
        (legacy("mean_tokens"), ("own.Normalize",), "of the type own.Normalize"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    folder: Path, config: dict[str, Any], more: tuple[str, ...], words: str
) -> None:
    describe(folder, config, *more)
    model = loaded(folder)
    with pytest.raises(
        ValueError, match=f"{words}.*cannot be done here.*`pooling`.*mean, cls, last"
    ):
        fidelity_of(model)
    asked = fidelity_of(model, Pooling.CLS)  # the way out
    assert asked == PooledEmbedding(Pooling.CLS)
    (note,) = embedding_notes(model, asked)
    assert "cannot be done here; cls pooling was taken instead." in note


@pytest.mark.parametrize("text", ["[", "{}", "[1]", '[{"type": "Pooling"}]', "7"])
def test_damaged_files_are_refused(folder: Path, text: str) -> None:
    describe(folder, {})
    (folder / "modules.json").write_text(text)
    with pytest.raises(
        ValueError, match="pooling of .*(cannot be understood|names 0 modules).*`pooling`"
    ):
        fidelity_of(loaded(folder))


def test_prompts_are_noted(folder: Path) -> None:
    describe(folder, legacy("cls_token"))
    told = {"prompts": {"query": "find: ", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told))
    model = loaded(folder)
    (note,) = embedding_notes(model, fidelity_of(model))
    assert "puts the prompts query before texts;" in note
    describe(folder, {**legacy("cls_token"), "include_prompt": False})
    (note,) = embedding_notes(model, fidelity_of(model))
    assert "leaves them out of the embedding" in note
    other, _ = embedding_notes(model, fidelity_of(model, Pooling.MAX))
    assert other == "the model states cls pooling, and its embeddings were judged by max pooling."
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    _, note = embedding_notes(model, fidelity_of(model))
    assert "its texts in lower case; nothing does so here" in note


def test_pooling_is_refused_where_nothing_is_pooled() -> None:
    for model in (tiny_models.BERT.build(), CLIP.build(bare=True)):
        with pytest.raises(ValueError, match=r"`pooling` is cls, and `model` is a .* leave it out"):
            fidelity_of(model, Pooling.CLS)
    assert isinstance(fidelity_of(tiny_models.BERT.build()), ClassLogits)


@pytest.mark.parametrize("pooling", list(Pooling), ids=lambda p: p.value)
def test_the_distance_is_that_of_the_vectors_handed_out(pooling: Pooling) -> None:
    dense, other = (tiny_models.BERT.build(bare=True, seed=seed) for seed in (0, 1))
    rows = texts(6)
    report = evaluate(
        dense, other, [collate(rows[:4]), collate(rows[4:])], PooledEmbedding(pooling)
    )
    apart = list[float]()
    for row in rows:
        vectors: list[Tensor] = [
            BY_HAND[pooling](model(**collate([row])).last_hidden_state[0])
            for model in (dense, other)
        ]
        apart.append(cosine_distance(*vectors))
    assert report.figures["cosine_distance"] == pytest.approx(np.mean(apart), rel=1e-4)
    assert report.pooling is pooling


def test_what_is_handed_out_as_an_embedding_is_not_pooled() -> None:
    model, batch = CLIP.build(bare=True), CLIP.batch()
    assert evaluate(model, model, [batch]).pooling is None
    classifier = tiny_models.BERT.build()
    assert evaluate(classifier, classifier, [tiny_models.batch()]).pooling is None


def test_the_file_decides_for_a_decoder_with_padding_on_the_left(tmp_path: Path) -> None:
    model: Any = tiny_models.LLAMA_GQA.build(bare=True)
    model.save_pretrained(tmp_path)
    describe(tmp_path, {"pooling_mode": "lasttoken"})
    dense = loaded(tmp_path)
    other = copy.deepcopy(dense)
    with torch.no_grad():
        other.layers[1].self_attn.o_proj.weight.mul_(0.5)
    rows = texts(5)
    last = [
        [model(**collate([row])).last_hidden_state[0, -1] for model in (dense, other)]
        for row in rows
    ]
    expected = np.mean([cosine_distance(*v) for v in last])
    for left in (False, True):
        report = evaluate(dense, other, [collate(rows, extra=2, left=left)])
        assert report.pooling is Pooling.LAST
        assert report.figures["cosine_distance"] == pytest.approx(expected, rel=1e-4)


def test_everything_is_measured_on_that_vector(folder: Path) -> None:
    """The last block of a model that pools by [CLS] is read at [CLS] alone."""
    describe(folder, legacy("cls_token"))
    model = loaded(folder)
    batch = collate(texts(4))
    weights = TokenWeights(model)
    weights.take(batch, 0)
    last = weights.taken[0][-1].squeeze(-1)
    assert (last[:, 0] > 0).all() and not last[:, 1:].any()
    assert (weights.taken[0][0].squeeze(-1)[batch["attention_mask"] != 0] > 0).all()
    stats = calibrate(model, [batch], sensitivity_examples=4)
    asked = calibrate(model, [batch], sensitivity_examples=4, fidelity=PooledEmbedding(Pooling.CLS))
    np.testing.assert_array_equal(stats.gauss_newton[1.0].sum, asked.gauss_newton[1.0].sum)


def test_a_saved_model_remembers_its_pooling(folder: Path, tmp_path: Path) -> None:
    describe(folder, legacy("cls_token"))
    dense = loaded(folder)
    kept = np.arange(find_attention(dense).space.n) % 2 == 0
    small = slice_heads(dense, kept, batch=tiny_models.batch())
    assert fidelity_of(small) == PooledEmbedding(Pooling.CLS)
    save_pretrained(small, tmp_path / "small")
    again = from_pretrained(tmp_path / "small")
    assert fidelity_of(again) == PooledEmbedding(Pooling.CLS)
    assert "| pooling | cls |" in (tmp_path / "small" / "README.md").read_text()


def test_the_demonstration_pools_by_the_mean_and_a_copy_by_what_its_file_says(
    tmp_path: Path,
) -> None:
    real = demo_model()
    assert fidelity_of(loaded(real)) == PooledEmbedding(Pooling.MEAN)
    for file in ("config.json", "model.safetensors", "modules.json"):
        (tmp_path / file).symlink_to(real / file)
    config = json.loads((real / "1_Pooling" / "config.json").read_text())
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({**config, **flags}))
    dense = loaded(tmp_path)
    small = slice_heads(dense, np.arange(72) % 3 > 0, batch=tiny_models.batch())
    batch = {"input_ids": torch.tensor([[101, 7592, 2088, 102], [101, 2003, 102, 0]])}
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    report = evaluate(dense, small, [batch])
    with torch.no_grad():
        states = [model(**batch).last_hidden_state[:, 0] for model in (dense, small)]
    expected = np.mean([cosine_distance(*pair) for pair in zip(*states, strict=True)])
    assert report.pooling is Pooling.CLS
    assert report.figures["cosine_distance"] == pytest.approx(expected, rel=1e-4)


def test_the_command_line_reads_the_file_and_names_the_pooling(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(folder, legacy("cls_token"))
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(sentences(60)) + "\n", encoding="utf-8")
    rest = ["--text", str(text), "--heads", "6", *QUICK]
    found = dict[str, Any]()
    for name, options in (("file", []), ("asked", ["--pooling", "last"])):
        output = tmp_path / name
        assert main(["prune", str(folder), "--output-dir", str(output), *rest, *options]) == 0
        found[name] = Report.read(output / "report.json")
    assert "cls pooling" in capsys.readouterr().out
    assert [found[name]["fidelity"]["pooling"] for name in found] == ["cls", "last"]
    assert found["file"]["selection"]["provenance"]["pooling"] == "cls"
    assert "| pooling | last |" in (tmp_path / "asked" / "README.md").read_text()
    before = [found[name]["fidelity"]["before"]["cosine_distance"] for name in found]
    assert before[0] != before[1]
    # A selection that knows its pooling is applied with it, whatever the file says by now.
    describe(folder, legacy("mean_tokens"))
    chosen = tmp_path / "asked" / "cahp_selection.json"
    options = ["--selection", str(chosen), "--text", str(text), *QUICK]
    again = tmp_path / "again"
    assert main(["apply", str(folder), "--output-dir", str(again), *options]) == 0
    applied = Report.read(again / "report.json")["fidelity"]
    assert applied["pooling"] == "last"
    assert applied["before"] == pytest.approx(found["asked"]["fidelity"]["before"])


@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.MEAN], ids=lambda p: p.value)
def test_statistics_record_their_pooling(pooling: Pooling) -> None:
    model = tiny_models.BERT.build(bare=True)
    batches = [collate(texts(4))]
    stats = calibrate(model, batches, fidelity=PooledEmbedding(pooling))
    assert stats.pooling is pooling
    other = PooledEmbedding(Pooling.LAST)
    with pytest.raises(ValueError, match=f"{pooling.value} pooling, and the other last pooling"):
        _ = stats + calibrate(model, batches, fidelity=other)


def test_statistics_of_what_is_not_pooled_record_none() -> None:
    assert calibrate(CLIP.build(bare=True), [CLIP.batch()]).pooling is None
    assert calibrate(tiny_models.BERT.build(), [tiny_models.batch()]).pooling is None


def test_a_selection_in_stages_tells_its_pooling(folder: Path) -> None:
    describe(folder, legacy("cls_token"))
    for model, told in ((loaded(folder), "cls"), (tiny_models.BERT.build(), None)):
        selection = select_staged(
            model, [collate(texts(4))], Quadratic.from_stats, 6, LocalSearch(), stages=2
        )
        assert selection.provenance.get("pooling") == told


@pytest.mark.parametrize("dense", [(), ("Dense",)], ids=["plain", "what cannot be done here"])
def test_the_commands_one_by_one_keep_to_the_pooling_asked_for(
    dense: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(folder, legacy("mean_tokens"), *dense)
    text, stats, chosen = (tmp_path / name for name in ("texts.txt", "stats", "selection.json"))
    text.write_text("\n".join(sentences(60)) + "\n", encoding="utf-8")
    read = ["--text", str(text), "--held-out", "20"]
    call = ["calibrate", str(folder), *read, "--pooling", "cls", "--output", str(stats)]
    assert main(call) == 0
    call = ["select", "--stats", str(stats), "--heads", "6", "--output", str(chosen)]
    assert main(call) == 0
    assert Selection.load(chosen).provenance["pooling"] == "cls"
    asked = {"followed": None, "bare": None, "mean": "mean"}
    for name, pooling in asked.items():
        options = ["--recovery", "none"] if name == "bare" else [*read, "--recovery", "none"]
        options += ["--pooling", pooling] if pooling else []
        output = tmp_path / name
        call = ["apply", str(folder), "--selection", str(chosen), "--output-dir", str(output)]
        assert main([*call, *options, "--repeats", "1"]) == 0
        report = Report.read(output / "report.json")
        assert report["selection"]["provenance"]["pooling"] == (pooling or "cls")
        assert fidelity_of(from_pretrained(output)) == PooledEmbedding(Pooling(pooling or "cls"))
        if name != "bare":
            assert report["fidelity"]["pooling"] == (pooling or "cls")
        notes = [note for note in report["notes"] if "selected for cls pooling" in note]
        assert len(notes) == (1 if pooling else 0)


def test_the_command_line_refuses_in_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(sentences(60)) + "\n", encoding="utf-8")
    describe(folder, legacy("mean_tokens"), "Dense")
    for command in ("prune", "calibrate"):
        output = ["--output-dir" if command == "prune" else "--output", str(tmp_path / "out")]
        call = [command, str(folder), "--text", str(text), *output]
        refused(capsys, 2, "of the type Dense", "pooling", run=lambda c=call: main(c))  # type: ignore[misc]
    assert not (tmp_path / "out").exists()
    headed = save_model(tmp_path / "headed", bare=False)
    call = ["calibrate", str(headed), "--text", str(text), "--pooling", "cls"]
    refused(capsys, 2, "`--pooling` is cls", "leave it out", run=lambda: main(call))
