"""What sentence-transformers needs goes where the pruned model goes, or a sentence says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from command_line import make_tokenizer, prune, refused, save_model, sentences
from fake_hub import fake_hub
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from sentence_folders import PACKAGE, describe
from torch import Tensor, nn
from transformers import AutoModel

from cahp_opt.cli import main
from cahp_opt.files.belongings import Belongings
from cahp_opt.runs.report import Report
from cahp_opt.stats.pooling import Pooling
from cahp_opt.torch import (
    fidelity_of,
    find_attention,
    from_pretrained,
    save_pretrained,
    selection_of,
    slice_heads,
)

CLS = {"word_embedding_dimension": 32, "pooling_mode": "cls"}
PROMPTS = {"prompts": {"query": "w1 w2 ", "document": ""}, "default_prompt_name": None}
READING = {"max_seq_length": 16, "do_lower_case": False}


def dense_layer(folder: Path) -> None:
    """A layer of 5 outputs behind the pooling, as sentence-transformers saves one."""
    folder.mkdir()
    told = {"in_features": 32, "out_features": 5, "bias": True}
    told["activation_function"] = "torch.nn.modules.activation.Tanh"  # type: ignore[assignment]
    (folder / "config.json").write_text(json.dumps(told))
    weights: dict[str, Tensor] = nn.Linear(32, 5).state_dict()
    save_file({f"linear.{name}": w for name, w in weights.items()}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """An embedder with every kind of file."""
    place = Path(shutil.copytree(plain, tmp_path / "model"))
    describe(place, CLS, "Dense")
    dense_layer(place / "2_Dense")
    (place / "config_sentence_transformers.json").write_text(json.dumps(PROMPTS))
    (place / "sentence_bert_config.json").write_text(json.dumps(READING))
    return place


TRAVELLING = (
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


def sliced(folder: Path | str, **options: Any) -> nn.Module:
    """The model of a folder with two thirds of its heads."""
    auto: Any = AutoModel
    dense = auto.from_pretrained(folder, **options).eval()
    kept = np.arange(find_attention(dense).space.n) % 3 > 0
    small: nn.Module = slice_heads(dense, kept, batch=tiny_models.batch())
    return small


def check_travelled(old: Path, new: Path) -> None:
    for name in TRAVELLING:
        assert (new / name).read_bytes() == (old / name).read_bytes(), name
    told, expected = (json.loads((f / "modules.json").read_text()) for f in (new, old))
    assert told[0]["path"] == ""
    assert [m["type"] for m in told] == [m["type"] for m in expected]
    assert told[1:] == expected[1:]


def test_all_of_it_goes_along_and_on(folder: Path, tmp_path: Path) -> None:
    save_pretrained(sliced(folder), tmp_path / "small", tokenizer=make_tokenizer())
    check_travelled(folder, tmp_path / "small")
    shutil.rmtree(folder)
    again = from_pretrained(tmp_path / "small")
    save_pretrained(again, tmp_path / "again")
    check_travelled(tmp_path / "small", tmp_path / "again")
    save_pretrained(again, tmp_path / "small", overwrite=True)
    check_travelled(tmp_path / "again", tmp_path / "small")
    assert not list((tmp_path / "small").glob("*.kept"))


def test_a_model_of_nobody_and_one_without_a_list_have_none(plain: Path, tmp_path: Path) -> None:
    save_pretrained(sliced(plain), tmp_path / "small")
    assert not (tmp_path / "small" / "modules.json").exists()


@pytest.mark.parametrize("named", ["the module's folder", "the folder with the list"])
def test_the_older_layout_has_the_model_in_a_folder_of_its_own(
    folder: Path, tmp_path: Path, named: str
) -> None:
    inner = older(folder)
    model = (
        sliced(inner) if named == "the module's folder" else sliced(folder, subfolder=inner.name)
    )
    save_pretrained(model, tmp_path / "small")
    assert (tmp_path / "small" / "sentence_bert_config.json").read_text() == json.dumps(READING)
    shutil.copy2(inner / "sentence_bert_config.json", folder)
    check_travelled(folder, tmp_path / "small")


def older(folder: Path) -> Path:
    """Move the model itself into a folder of its own, as early releases did."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    kept = ("1_Pooling", "2_Dense", "modules.json", "config_sentence_transformers.json", inner.name)
    for path in [path for path in folder.iterdir() if path.name not in kept]:
        path.rename(inner / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(modules))
    return inner


def change(entry: int, **fields: str) -> Callable[[Path], None]:
    """A change to one entry of the list of modules."""

    def changed(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[entry].update(fields)
        (folder / "modules.json").write_text(json.dumps(modules))

    return changed


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (change(0, type="custom_st.Transformer"), "custom_st.Transformer has code of its own"),
        (change(2, type="own.layers.Dense"), "its module own.layers.Dense has code of its own"),
        (
            change(0, type=f"{PACKAGE}.StaticEmbedding"),
            "its first module is a StaticEmbedding, and",
        ),
        (change(2, path="../2_Dense"), r"the path ../2_Dense of a module leads out of the folder"),
        (change(2, path="C:\\Dense"), r"leads out of the folder"),
        (change(2, path=""), "the files of its module Dense are missing"),
        (lambda folder: shutil.rmtree(folder / "2_Dense"), "of its module 2_Dense are missing"),
        (lambda folder: (folder / "modules.json").write_text("7"), "cannot be understood"),
        (lambda folder: (folder / "modules.json").write_text("["), "cannot be understood"),
    ],
)
def test_what_cannot_go_along_is_told(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], why: str
) -> None:
    spoil(folder)
    model = sliced(folder)
    with pytest.warns(UserWarning, match=f"beside {folder} stay behind: .*{why}.*copy them"):
        save_pretrained(model, tmp_path / "small")
    assert not (tmp_path / "small" / "modules.json").exists()
    assert not (tmp_path / "small" / "1_Pooling").exists()


def test_those_of_a_repository_are_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("someone/embedder", folder)
        save_pretrained(sliced("someone/embedder"), tmp_path / "small")
        check_travelled(folder, tmp_path / "small")
        hub.add("someone/pruned", tmp_path / "small")
        save_pretrained(from_pretrained("someone/pruned"), tmp_path / "again")
        check_travelled(folder, tmp_path / "again")


def test_a_repository_that_is_out_of_reach_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **options: object) -> str:
        raise LocalEntryNotFoundError("the connection is down")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    model: Any = sliced(folder)
    model.config._name_or_path = "someone/embedder"
    with pytest.warns(UserWarning, match="someone/embedder stay behind: .* cannot be reached"):
        save_pretrained(model, tmp_path / "far")
    assert not (tmp_path / "far" / "1_Pooling").exists()
    headed: Any = tiny_models.BERT.build()
    headed.config._name_or_path = "someone/classifier"
    kept = np.arange(find_attention(headed).space.n) % 3 > 0
    save_pretrained(slice_heads(headed, kept, batch=tiny_models.batch()), tmp_path / "headed")


def test_what_is_opened_by_a_stock_class_is_told(folder: Path, tmp_path: Path) -> None:
    family = tiny_models.named("t5")
    model: Any = family.build()
    model.config._name_or_path = str(folder)
    kept = np.arange(find_attention(model).space.n) % 3 > 0
    with pytest.warns(UserWarning, match=r"opens a t5 by its stock class.*`\[0\].model`"):
        save_pretrained(slice_heads(model, kept, batch=family.batch()), tmp_path / "small")
    assert (tmp_path / "small" / "modules.json").exists()


def test_the_command_line_takes_them_along(folder: Path, tmp_path: Path) -> None:
    inner, output, text = older(folder), tmp_path / "pruned", tmp_path / "texts.txt"
    text.write_text("\n".join(sentences(60)) + "\n", encoding="utf-8")
    options = ["--text", str(text), "--heads", "6", "--pooling", "cls", "--recovery", "none"]
    assert prune(folder, output, *options) == 0
    report = Report.read(output / "report.json")
    assert {*TRAVELLING, "modules.json"} <= report["files"].keys()
    assert report["fidelity"]["pooling"] == "cls"
    shutil.copy2(inner / "sentence_bert_config.json", folder)
    check_travelled(folder, output)
    assert Belongings.of(output).foreign == ()  # all of it is known as ours


def test_the_command_line_tells_or_refuses_what_stays_behind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(sentences(60)) + "\n", encoding="utf-8")
    options = ["--text", str(text), "--heads", "6", "--recovery", "none"]
    change(0, type="custom_st.Transformer")(folder)
    why = ("of the type custom_st.Transformer", "cannot be done here", "pooling")
    refused(capsys, 2, *why, run=lambda: prune(folder, tmp_path / "out", *options))
    assert prune(folder, tmp_path / "out", *options, "--pooling", "cls") == 0
    notes = Report.read(tmp_path / "out" / "report.json")["notes"]
    assert any("stay behind: its module custom_st.Transformer" in note for note in notes)
    older(folder)
    change(0, type=f"{PACKAGE}.CLIPModel")(folder)
    words = ("the first module", "0_Transformer, is a CLIPModel, and not a Transformer")
    refused(capsys, 2, *words, run=lambda: prune(folder, tmp_path / "no", *options))
    call = ["calibrate", str(folder), "--text", str(text), "--output", str(tmp_path / "stats")]
    refused(capsys, 2, *words, run=lambda: main(call))


# --- the package itself ---------------------------------------------------------------------------

MODES = {
    "cls": Pooling.CLS,
    "max": Pooling.MAX,
    "mean": Pooling.MEAN,
    "mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LEN,
    "weightedmean": Pooling.WEIGHTED_MEAN,
    "lasttoken": Pooling.LAST,
}


def opened(folder: Path) -> Any:
    """A folder as sentence-transformers opens it."""
    package = pytest.importorskip("sentence_transformers")
    return package.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def embedded(model: nn.Module, texts: list[str]) -> Tensor:
    """The embeddings that fidelity compares, of unit length, ``[texts, width]``."""
    batch = make_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = fidelity_of(model).output(model(**batch), batch)
    return nn.functional.normalize(vectors, dim=-1)


@pytest.mark.slow
def test_sentence_transformers_embeds_as_fidelity_does(plain: Path, tmp_path: Path) -> None:
    texts = sentences(12)
    for mode, pooling in MODES.items():
        source = Path(shutil.copytree(plain, tmp_path / mode))
        describe(source, {**CLS, "pooling_mode": mode})
        model, small = sliced(source), tmp_path / f"small-{mode}"
        assert fidelity_of(model) == fidelity_of(model, pooling)
        save_pretrained(model, small, tokenizer=make_tokenizer())
        theirs = opened(small).encode(texts, convert_to_tensor=True)
        torch.testing.assert_close(theirs, embedded(model, texts), atol=1e-6, rtol=0)


def test_dense_layers_prompts_and_lengths_are_those_of_the_original(
    folder: Path, tmp_path: Path
) -> None:
    model = sliced(folder)
    save_pretrained(model, tmp_path / "small", tokenizer=make_tokenizer())
    small, dense = opened(tmp_path / "small"), opened(folder)
    name = "model" if hasattr(dense[0], "model") else "auto_model"  # before release 6
    setattr(dense[0], name, model)
    assert small.prompts == dense.prompts and small.prompts["query"] == "w1 w2 "
    assert small.max_seq_length == dense.max_seq_length == 16
    texts = [*sentences(6), " ".join(f"w{i % 50}" for i in range(40))]
    for prompt in ("query", "document"):
        mine, theirs = (each.encode(texts, prompt_name=prompt) for each in (dense, small))
        assert mine.shape == (7, 5)
        np.testing.assert_allclose(theirs, mine, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_what_it_saves_again_opens_everywhere(plain: Path, tmp_path: Path) -> None:
    texts, source = sentences(6), Path(shutil.copytree(plain, tmp_path / "model"))
    describe(source, CLS)
    model = sliced(source)
    save_pretrained(model, tmp_path / "small", tokenizer=make_tokenizer())
    first = opened(tmp_path / "small")
    first.save(str(tmp_path / "trained"))
    np.testing.assert_array_equal(opened(tmp_path / "trained").encode(texts), first.encode(texts))
    again = from_pretrained(tmp_path / "trained")
    assert fidelity_of(again) == fidelity_of(model, Pooling.CLS)
    assert torch.equal(embedded(again, texts), embedded(model, texts))
    chosen, expected = selection_of(again), selection_of(model)
    assert chosen is not None and expected is not None
    np.testing.assert_array_equal(chosen.kept, expected.kept)
