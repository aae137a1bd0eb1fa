"""Folders that transformers loads with `trust_remote_code=True`, without this library."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from stand_ins import byte_tokenizer
from tiny_models import named, sliced
from torch import nn

from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.checkpoints.module_record import record_of
from cahp_opt.torch.checkpoints.self_contained import FILES, auto_class
from cahp_opt.torch.slicing.bypass import bypass_empty
from cahp_opt.torch.slicing.modeling_cahp import ENTRY, NEEDS, apply_record
from cahp_opt.torch.slicing.rewritten_forward import OwnWidth
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads

ROOT = Path(__file__).parents[3]


pytestmark = pytest.mark.usefixtures("modules_of_folders")


def opened(folder: Path, auto: str = "", **options: Any) -> Any:
    """The model of a folder, by the Auto class of its card, or another."""
    card = (folder / "README.md").read_text()
    auto = auto or card.partition("from transformers import ")[2].partition("\n")[0]
    loader: Any = getattr(transformers, auto)
    return loader.from_pretrained(str(folder), trust_remote_code=True, **options).eval()


def assert_same(model: nn.Module, saved: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    assert type(model).__module__.startswith("transformers_modules.")
    assert type(model).__name__ == type(saved).__name__
    pairs = zip(model.named_parameters(), saved.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and a.requires_grad == b.requires_grad and torch.equal(a, b), name
    mine, theirs = tiny.outputs(model, batch), tiny.outputs(saved, batch)
    assert mine.keys() == theirs.keys() and mine
    for key, value in theirs.items():
        assert torch.equal(mine[key], value), key


@pytest.mark.parametrize(
    "name", ["bert", "distilbert", "gpt2", "llama-gqa", "t5", "bart", "bloom", "vit", "clip"]
)
def test_a_folder_loads_as_it_was(name: str, tmp_path: Path) -> None:
    """Uneven heads and neurons, one block of attention and one feed-forward part empty."""
    family = named(name)
    small = sliced(family, neurons=True)
    save_pretrained(small, tmp_path / "pruned")
    model = opened(tmp_path / "pruned")
    assert_same(model, small, family.batch())
    if family.generates:
        prompt = family.prompt()
        options = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(model.generate(**prompt, **options), small.generate(**prompt, **options))


def test_a_forward_with_a_width_of_its_own_travels(tmp_path: Path) -> None:
    """PvtV2 gives the heads' output the width of its input."""
    sizes: dict[str, Any] = {
        "hidden_sizes": [8, 16],
        "num_attention_heads": [2, 4],
        "depths": [1, 1],
    }
    sizes |= {"sr_ratios": [1, 1], "mlp_ratios": [2, 2], "num_encoder_blocks": 2, "num_labels": 2}
    sizes |= {"patch_sizes": [3, 3], "strides": [2, 2]}
    config = transformers.PvtV2Config(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make: Any = transformers.PvtV2ForImageClassification
        model = make(config).eval()
        batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    small = slice_heads(model, tiny.uneven(find_attention(model).space), batch=batch)
    assert any(isinstance(vars(m).get("forward"), OwnWidth) for m in small.modules())
    save_pretrained(small, tmp_path / "pruned")
    assert_same(opened(tmp_path / "pruned"), small, batch)


def test_the_files_are_those_of_the_library_and_need_torch_and_transformers_alone(
    tmp_path: Path,
) -> None:
    save_pretrained(sliced(), tmp_path / "pruned")
    names_beside = {path.name for path in FILES}
    for path in FILES:
        text = (tmp_path / "pruned" / path.name).read_text("utf-8")
        assert text == path.read_text("utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
        beside = {f"{n.module}.py" for n in nodes if isinstance(n, ast.ImportFrom) and n.level}
        # Earlier releases of transformers copy what the modelling file itself names, and nothing else.
        assert path is not FILES[0] or beside == names_beside - {path.name}
        assert {n.partition(".")[0] for n in names} <= {
            *sys.stdlib_module_names,
            "torch",
            "transformers",
        }
        assert beside <= names_beside


def test_the_code_of_the_card_runs(tmp_path: Path) -> None:
    save_pretrained(sliced(), tmp_path / "pruned")
    card = (tmp_path / "pruned" / "README.md").read_text()
    snippets = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    assert len(snippets) == 2 and "trust_remote_code=True" in snippets[0]
    for code in snippets:
        names: dict[str, Any] = {"directory": str(tmp_path / "pruned")}
        exec(code, names)
        assert type(names["model"]).__name__ == "BertForSequenceClassification"


def test_the_other_class_of_the_same_model(tmp_path: Path) -> None:
    """With a head that the saved one lacks, as for fine-tuning, and without the one that it has."""
    bare, headed = sliced(tiny.BERT, bare=True, neurons=True), sliced(tiny.GPT2, neurons=True)
    save_pretrained(bare, tmp_path / "bare")
    save_pretrained(headed, tmp_path / "headed")
    model = opened(tmp_path / "bare", "AutoModelForSequenceClassification", num_labels=5)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.classifier.out_features == 5
    batch = tiny.BERT.batch()
    inner = tiny.outputs(model.bert, batch)["last_hidden_state"]
    assert torch.equal(inner, tiny.outputs(bare, batch)["last_hidden_state"])
    model = opened(tmp_path / "headed", "AutoModel")
    assert_same(model, headed.transformer, tiny.GPT2.batch())


def test_options_of_the_loader(tmp_path: Path) -> None:
    """As evaluation harnesses pass them, of shards, with tied weights."""
    small = sliced(tiny.GPT2, neurons=True, dtype=torch.bfloat16)
    save_pretrained(small, tmp_path / "pruned", max_shard_size="10KB")
    assert len(list((tmp_path / "pruned").glob("*.safetensors"))) > 1
    given = {"revision": "main", "dtype": "auto", "attn_implementation": "eager"}
    model, info = opened_with_info(tmp_path / "pruned", **given)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.lm_head.weight is model.transformer.wte.weight
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    frozen = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert frozen and frozen == [n for n, p in model.named_parameters() if not p.requires_grad]


def opened_with_info(folder: Path, **options: Any) -> Any:
    loader: Any = transformers.AutoModelForCausalLM
    return loader.from_pretrained(
        str(folder), trust_remote_code=True, output_loading_info=True, **options
    )


@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}], ids=str)
def test_without_trust_nothing_is_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    save_pretrained(sliced(), tmp_path / "pruned")
    loader: Any = transformers.AutoModelForSequenceClassification
    for trust in (None, False):
        with pytest.raises(OSError, match="no file named"):
            loader.from_pretrained(str(tmp_path / "pruned"), trust_remote_code=trust, **options)


def test_a_pipeline(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    small = sliced(tiny.BERT, vocab_size=len(tokenizer), max_position_embeddings=128)
    save_pretrained(small, tmp_path / "pruned", tokenizer=tokenizer)
    make: Any = transformers.pipeline
    classify = make("text-classification", str(tmp_path / "pruned"), trust_remote_code=True)
    with torch.no_grad():
        scores = small(**tokenizer("the words", return_tensors="pt")).logits.softmax(-1)
    assert classify("the words")[0]["score"] == pytest.approx(float(scores.max()), abs=1e-6)


def test_code_of_the_original_is_not_named(tmp_path: Path) -> None:
    """Its files do not travel, and it would not know what was removed."""
    small = sliced(tiny.LLAMA_GQA)
    small.config.auto_map = {"AutoConfig": "configuration_own.OwnConfig"}
    save_pretrained(small, tmp_path / "pruned")
    assert_same(opened(tmp_path / "pruned"), small, tiny.batch())


def test_new_weights_are_saved_under_their_usual_name(tmp_path: Path) -> None:
    save_pretrained(sliced(tiny.LLAMA_GQA, neurons=True), tmp_path / "pruned")
    place = str(tmp_path / "pruned")
    config: Any = transformers.AutoConfig.from_pretrained(place, trust_remote_code=True)
    loader: Any = transformers.AutoModelForCausalLM
    model = loader.from_config(config, trust_remote_code=True).eval()
    model.save_pretrained(tmp_path / "again")
    again = loader.from_pretrained(str(tmp_path / "again"), trust_remote_code=True).eval()
    batch = tiny.batch()
    assert torch.equal(tiny.run(again, batch), tiny.run(model, batch))


def test_emptied_blocks_are_skipped_with_weights_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    small = sliced(tiny.LLAMA_GQA, empty=1, neurons=True)
    bypass_empty(small)
    save_pretrained(small, tmp_path / "pruned")
    places = {"lm_head": "cpu", "model.embed_tokens": "cpu", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu"}
    places |= {f"model.layers.{i}": "disk" for i in range(small.config.num_hidden_layers)}
    model = opened(
        tmp_path / "pruned", device_map=places, offload_folder=str(tmp_path / "elsewhere")
    )
    batch = tiny.batch()
    torch.testing.assert_close(tiny.run(model, batch), tiny.run(small, batch))


def test_the_stock_saves_it_again_with_the_files(tmp_path: Path) -> None:
    small = sliced(tiny.LLAMA_GQA, neurons=True)
    save_pretrained(small, tmp_path / "pruned")
    model = opened(tmp_path / "pruned")
    model.save_pretrained(str(tmp_path / "again"))
    assert (tmp_path / "again" / "model.safetensors").is_file()
    assert all((tmp_path / "again" / path.name).is_file() for path in FILES)
    auto = {"AutoModelForCausalLM", "AutoModel"}
    assert auto <= json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"].keys()
    loader: Any = transformers.AutoModelForCausalLM
    again = loader.from_pretrained(str(tmp_path / "again"), trust_remote_code=True).eval()
    assert_same(again, small, tiny.LLAMA_GQA.batch())
    assert_same(pickle.loads(pickle.dumps(again)), small, tiny.LLAMA_GQA.batch())
    ours = from_pretrained(tmp_path / "again")
    kept = selection_of(ours)
    assert kept is not None and kept.counts.tolist() == selection_of(small).counts.tolist()  # type: ignore[union-attr]


def test_this_library_loads_the_stock_class_without_the_files(tmp_path: Path) -> None:
    save_pretrained(sliced(), tmp_path / "pruned")
    model = from_pretrained(tmp_path / "pruned")
    assert type(model) is transformers.BertForSequenceClassification
    model.save_pretrained(str(tmp_path / "stock"))
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert ENTRY not in config and "auto_map" not in config


def test_a_model_without_a_trace_of_its_units_is_not_saved_as_one_with(tmp_path: Path) -> None:
    save_pretrained(sliced(), tmp_path / "pruned")
    model = opened(tmp_path / "pruned")
    with pytest.raises(ValueError, match=r"load that folder with `cahp_opt.torch.from_pretrained`"):
        save_pretrained(model, tmp_path / "again")
    small = slice_heads(model, tiny.uneven(find_attention(model).space))
    with pytest.raises(ValueError, match=r"load that folder with `cahp_opt.torch.from_pretrained`"):
        save_pretrained(small, tmp_path / "again")


def test_what_needs_the_library_says_so_and_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigLIP pools by torch's own attention, which is made explicit."""
    family = named("siglip")
    small = sliced(family)
    save_pretrained(small, tmp_path / "pruned")
    assert "trust_remote_code" not in (tmp_path / "pruned" / "README.md").read_text()
    model = opened(tmp_path / "pruned", "AutoModel")
    assert type(model) is type(small)
    for key, value in tiny.outputs(small, family.batch()).items():
        assert torch.equal(tiny.outputs(model, family.batch())[key], value)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "cahp_opt" else find_spec(name)
    )
    with pytest.raises(ImportError, match=r"pruned SiglipModel .*`pip install cahp-opt`"):
        opened(tmp_path / "pruned", "AutoModel")


def stock_and_record() -> tuple[nn.Module, dict[str, Any]]:
    small = sliced(neurons=True)
    stock = type(small)(small.config)
    return type(small)(small.config), record_of(stock, small)


def test_another_build_of_the_same_model_is_refused() -> None:
    """Numbers that differ, that are new, weights that are too small, modules that moved."""
    attention = "bert.encoder.layer.1.attention.self"

    def more(model: Any) -> None:
        model.get_submodule(attention).num_attention_heads += 1

    def new(model: Any) -> None:
        model.get_submodule(attention).n_heads = tiny.HEADS

    def small(model: Any) -> None:
        model.get_submodule(attention).query = nn.Linear(1, 1)

    def moved(model: Any) -> None:
        layer = model.bert.encoder.layer[1].attention
        layer.attn = layer.self
        del layer.self

    for change, told in (
        (more, f"{attention} has num_attention_heads=5, and it was 4"),
        (new, f"{attention} has a number n_heads"),
        (small, f"{attention}.query has out_features=1, and it was 32"),
        (moved, f"{attention} is not there"),
    ):
        model, record = stock_and_record()
        apply_record(copy.deepcopy(model), record)
        change(model)
        with pytest.raises(
            ValueError, match=r"Install that release, or `pip install cahp-opt`"
        ) as e:
            apply_record(model, record)
        assert told in str(e.value)


def test_whatever_is_left_that_differs_needs_the_library() -> None:
    small = sliced()
    _, record = stock_and_record()
    assert NEEDS not in record
    layer = small.bert.encoder.layer[0]

    def planted(what: str) -> str:
        changed = copy.deepcopy(small)
        layer = changed.bert.encoder.layer[0]
        if what == "forward":
            layer.forward = lambda *args, **kwargs: None
        elif what == "class":
            layer.attention.__class__ = nn.Identity
        elif what == "hook":
            layer.register_forward_hook(lambda *args: None)
        elif what == "module":
            layer.more = nn.Linear(1, 1)
        elif what == "weight":
            layer.output.dense.more = nn.Parameter(torch.zeros(1))
        return str(record_of(type(small)(small.config), changed)[NEEDS])

    assert isinstance(layer, nn.Module)
    assert planted("forward").startswith("bert.encoder.layer.0 runs another forward")
    assert "is a Identity" in planted("class")
    assert planted("hook").startswith("bert.encoder.layer.0 has hooks")
    assert planted("module") == "bert.encoder.layer.0.more is not in the stock class"
    assert planted("weight").startswith("bert.encoder.layer.0.output.dense has weights")


@pytest.mark.parametrize(
    ("cls", "auto"),
    [
        ("BertModel", "AutoModel"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("BartForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq"),
        ("GPT2DoubleHeadsModel", None),
    ],
)
def test_the_way_in_is_the_auto_class_of_the_saved_one(cls: str, auto: str | None) -> None:
    assert auto_class(getattr(transformers, cls)) == auto


@pytest.mark.slow
def test_where_the_library_is_not_installed(tmp_path: Path) -> None:
    """Ten architectures and more, in an environment of transformers alone."""
    script = ROOT / "benchmarks" / "architectures" / "without_library.py"
    options = ["--environments", str(tmp_path), "--releases", transformers.__version__]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("largest difference 0") >= 30, done.stdout
