"""Saving and loading sliced models."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, Family, run, sliced, uneven
from torch import Tensor, nn

from cahp_opt.files.records import RecordError
from cahp_opt.selection import Selection
from cahp_opt.space import HeadSpace
from cahp_opt.torch.blocks.explicit import explicit_attention
from cahp_opt.torch.blocks.finder import UnsupportedModelError, find_attention
from cahp_opt.torch.checkpoints.checkpoint import SELECTION_FILE, from_pretrained, save_pretrained
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


def assert_same(loaded: nn.Module, saved: nn.Module) -> None:
    pairs = zip(loaded.named_parameters(), saved.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and a.dtype == b.dtype and a.requires_grad == b.requires_grad, name
        assert torch.equal(a, b), name
    assert torch.equal(run(loaded, tiny.batch()), run(saved, tiny.batch()))


def test_the_loaded_model_can_be_saved_sliced_and_pickled(tmp_path: Path) -> None:
    model = tiny.LLAMA_GQA.build()
    first = slice_heads(model, uneven(find_attention(model).space))
    save_pretrained(first, tmp_path / "first")
    loaded = from_pretrained(tmp_path / "first")
    kept = np.ones(find_attention(loaded).space.n, dtype=bool)
    kept[[0, -1]] = False  # the first block had one unit, so it loses its last
    second = slice_heads(loaded, kept)
    save_pretrained(second, tmp_path / "second")
    again = from_pretrained(tmp_path / "second")
    assert_same(again, second)
    assert [block.ghost for block in find_attention(again).attention] == [True, False, False]
    assert_same(pickle.loads(pickle.dumps(again)), second)


def test_bare_models_and_loader_options(tmp_path: Path) -> None:
    small = sliced(tiny.MPNET, bare=True)
    save_pretrained(small, tmp_path / "pruned")
    loaded = from_pretrained(tmp_path / "pruned", dtype=torch.float64)
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert_same(from_pretrained(str(tmp_path / "pruned"), attn_implementation="eager"), small)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    small = sliced(tiny.GPT2)
    assert small.lm_head.weight is small.transformer.wte.weight
    save_pretrained(small, tmp_path / "pruned")
    loaded = from_pretrained(tmp_path / "pruned")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_sharded_weights(tmp_path: Path) -> None:
    small = sliced(tiny.QWEN2)
    save_pretrained(small, tmp_path / "pruned", max_shard_size="20KB")
    assert len(list((tmp_path / "pruned").glob("*.safetensors"))) > 1
    assert_same(from_pretrained(tmp_path / "pruned"), small)


@families
@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}], ids=str)
def test_the_stock_loader_refuses_the_folder(
    family: Family, options: dict[str, Any], tmp_path: Path
) -> None:
    small = sliced(family)
    save_pretrained(small, tmp_path / "pruned")
    for loader in (type(small), transformers.AutoModel):
        with pytest.raises(OSError, match=r"no file named.*model\.safetensors"):
            loader.from_pretrained(str(tmp_path / "pruned"), **options)


def test_folders_of_the_first_release_still_load(tmp_path: Path) -> None:
    """It wrote the weights under their usual name, and the stock loader refuses them by shape."""
    small = sliced()
    save_pretrained(small, tmp_path / "pruned")
    weights = tmp_path / "pruned" / "cahp_weights.safetensors"
    weights.rename(tmp_path / "pruned" / "model.safetensors")
    assert_same(from_pretrained(tmp_path / "pruned"), small)
    with pytest.raises(RuntimeError, match="mismatch"):
        type(small).from_pretrained(str(tmp_path / "pruned"))


@pytest.mark.parametrize(
    "family", [tiny.BERT, tiny.DISTILBERT, tiny.GPT2, tiny.LLAMA_GQA], ids=lambda f: f.name
)
def test_another_class_of_the_same_model(family: Family, tmp_path: Path) -> None:
    """Paths differ between classes (``bert.encoder...`` and ``encoder...``), the order does not."""
    small = sliced(family)
    headed, bare = type(small), type(small.base_model)
    save_pretrained(small, tmp_path / "headed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BERT's pooler stays; DistilBERT's classifier does not
        inner = from_pretrained(tmp_path / "headed", model_class=bare)
    assert type(inner) is bare
    assert torch.equal(run(inner, tiny.batch()), run(small.base_model, tiny.batch()))
    plan = selection_of(inner)
    assert plan is not None
    assert [b.name for b in plan.space.blocks] == [b.name for b in find_attention(inner).attention][
        :3
    ]
    save_pretrained(inner, tmp_path / "bare")
    if family is tiny.GPT2:  # its head is the embedding
        again = from_pretrained(tmp_path / "bare", model_class=headed)
    else:
        with pytest.warns(UserWarning, match=r"no weights for (classifier|lm_head).*untrained"):
            again = from_pretrained(tmp_path / "bare", model_class=headed, num_labels=5)
        assert again(**tiny.batch()).logits.shape[-1] == (
            5 if hasattr(again, "classifier") else tiny.VOCABULARY
        )
    assert torch.equal(run(again.base_model, tiny.batch()), run(inner, tiny.batch()))


class OwnClassifier(transformers.BertPreTrainedModel):  # type: ignore[no-untyped-call]
    """A class that transformers does not export, as a checkpoint's own code would bring."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config)
        self.scores = nn.Linear(config.hidden_size, 2)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        hidden: Tensor = self.bert(input_ids, attention_mask)[0]
        return (self.scores(hidden[:, 0]),)


def test_classes_that_transformers_does_not_export(tmp_path: Path) -> None:
    config = tiny.BERT.config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OwnClassifier(config)
        tiny.stir(model)
    nn.Module.eval(model)
    small = slice_heads(model, uneven(find_attention(model).space, empty=1))
    save_pretrained(small, tmp_path / "pruned")
    with pytest.raises(RecordError, match=r"'OwnClassifier'.*exports no such model.*`model_class`"):
        from_pretrained(tmp_path / "pruned")
    loaded = from_pretrained(tmp_path / "pruned", model_class=OwnClassifier)
    assert type(loaded) is OwnClassifier
    assert_same(loaded, small)
    wrong: Any
    for wrong in (nn.Linear, transformers.AutoModel, "OwnClassifier"):
        with pytest.raises(ValueError, match=r"`model_class` must be a subclass"):
            from_pretrained(tmp_path / "pruned", model_class=wrong)


def test_weights_missing_from_a_block_are_an_error_whatever_the_class(tmp_path: Path) -> None:
    small = sliced()
    save_pretrained(small, tmp_path / "pruned")
    file = tmp_path / "pruned" / "cahp_weights.safetensors"
    tensors = load_file(file)
    del tensors["bert.encoder.layer.1.attention.self.key.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    for model_class in (None, transformers.BertModel):
        with pytest.raises(RecordError, match=r"lacks the weights.*layer\.1\.attention"):
            from_pretrained(tmp_path / "pruned", model_class=model_class)


@pytest.mark.parametrize("where", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(where: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    small = sliced(tiny.LLAMA_GQA)
    save_pretrained(small, tmp_path / "pruned", max_shard_size="20KB")
    assert_same(from_pretrained(tmp_path / "pruned", device_map=where), small)


def test_models_with_adapters_are_not_saved_without_their_weights(tmp_path: Path) -> None:
    small = sliced(tiny.LLAMA_GQA)
    small._hf_peft_config_loaded = True  # what `add_adapter` of transformers leaves
    with pytest.raises(ValueError, match=r"`model` holds adapters"):
        save_pretrained(small, tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


class Tokenizer:
    """Saves one file, or fails half way."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def save_pretrained(self, save_directory: str, /) -> None:
        (Path(save_directory) / "vocabulary.txt").write_text("a b c")
        if self.fails:
            raise OSError(28, "No space left on device")


def test_the_tokenizer_is_saved_beside_it(tmp_path: Path) -> None:
    save_pretrained(sliced(), tmp_path / "deep" / "pruned", tokenizer=Tokenizer())
    assert (tmp_path / "deep" / "pruned" / "vocabulary.txt").read_text() == "a b c"


def test_folders_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    small, target = sliced(), tmp_path / "pruned"
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(small, target, tokenizer=Tokenizer(fails=True))
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    save_pretrained(small, target)
    with pytest.raises(FileExistsError, match=r"not empty.*overwrite=True"):
        save_pretrained(small, target)
    (target / "old.txt").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(small, target, tokenizer=Tokenizer(fails=True), overwrite=True)
    assert (target / "old.txt").exists()
    save_pretrained(small, target, overwrite=True)
    assert (target / "old.txt").read_text() == "old"
    assert_same(from_pretrained(target), small)
    assert list(tmp_path.iterdir()) == [target]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        save_pretrained(small, file, overwrite=True)


def test_models_that_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was not sliced"):
        save_pretrained(tiny.BERT.build(), tmp_path / "pruned")
    wrapped: Any = nn.Sequential(sliced(bare=True))
    with pytest.raises(ValueError, match="not a transformers model"):
        save_pretrained(wrapped, tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


def test_wrong_folders_are_one_sentence(tmp_path: Path) -> None:
    target = tmp_path / "pruned"
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        from_pretrained(target)
    save_pretrained(sliced(), target)
    plan = target / SELECTION_FILE
    good = json.loads(plan.read_text())

    plan.write_text("{")
    with pytest.raises(RecordError, match="not a readable JSON record"):
        from_pretrained(target)

    space = HeadSpace.uniform(blocks=3, units=5)
    Selection.from_kept(space, np.ones(15, dtype=bool)).save(plan)
    with pytest.raises(RecordError, match=r"of another model.*5 5 5 heads.*4 4 4 heads"):
        from_pretrained(target)

    name = good["blocks"][1][0]
    plan.write_text(json.dumps({**good, "kept": {**good["kept"], name: [0, 1, 2]}}))
    with pytest.raises(RecordError, match="does not fit the weights"):
        from_pretrained(target)

    plan.unlink()
    with pytest.raises(RecordError, match=f"has no {SELECTION_FILE}"):
        from_pretrained(target)

    plan.write_text(json.dumps(good))
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        from_pretrained(target, ignore_mismatched_sizes=True)

    config = target / "config.json"
    text = config.read_text()
    config.write_text(text.replace("BertForSequenceClassification", "BertForTelepathy"))
    with pytest.raises(RecordError, match="'BertForTelepathy'"):
        from_pretrained(target)
    config.write_text("[]")
    with pytest.raises(RecordError, match="names no architecture"):
        from_pretrained(target)
    config.write_text(text)

    weights = target / "cahp_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="cannot be read"):
        from_pretrained(target)
    weights.write_bytes(whole)
    assert_same(from_pretrained(target), sliced())
    shutil.rmtree(target)


def test_models_that_draw_random_numbers_load(tmp_path: Path) -> None:
    """Such as the masks of ViT-MAE: their answers differ from call to call, which proves nothing."""
    sizes: dict[str, Any] = {name: tiny.SIZES[name] for name in ("hidden_size", "image_size")}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**sizes, patch_size=4))
    small = slice_heads(model, uneven(find_attention(model).space))
    save_pretrained(small, tmp_path / "pruned")
    torch.rand(1)
    assert find_attention(from_pretrained(tmp_path / "pruned")).space.n == 1


def test_models_that_fail_on_inputs_made_up_are_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = sliced()

    @functools.wraps(transformers.BertModel.forward)
    def refused(self: nn.Module, **inputs: Any) -> None:
        assert "pixel_values" in inputs, "an image too, please"

    with monkeypatch.context() as patch:
        patch.setattr(transformers.BertModel, "forward", refused)
        save_pretrained(small, tmp_path / "pruned")
    assert_same(from_pretrained(tmp_path / "pruned"), small)


@pytest.mark.parametrize(("name", "part"), [("clip", "text_model"), ("t5", "encoder")])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_model_of_which_a_part_was_sliced(
    name: str, part: str, again: bool, tmp_path: Path
) -> None:
    model: Any = tiny.named(name).build()
    tower: nn.Module = model.get_submodule(part)
    kept = uneven(find_attention(tower).space, empty=1)
    slice_heads(tower, kept, in_place=True, batch=tiny.batch())
    whole = slice_heads(model, uneven(find_attention(model).space, seed=3)) if again else model
    plan = selection_of(whole)
    assert plan is not None and [b.units for b in plan.space.blocks] == [tiny.HEADS] * 6
    save_pretrained(whole, tmp_path / "pruned")
    loaded = from_pretrained(tmp_path / "pruned")
    found = selection_of(loaded)
    assert found is not None and found.heads() == plan.heads()
    for name, weight in whole.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight), name


def test_parts_of_a_sliced_model_can_be_saved(tmp_path: Path) -> None:
    model: Any = tiny.BERT.build()
    selection = Selection.from_kept(find_attention(model).space, np.arange(12) % 2 == 0)
    small: Any = slice_heads(model, selection)
    part = selection_of(small.bert)
    assert part is not None and part.kept.tolist() == selection.kept.tolist()
    save_pretrained(small.bert, tmp_path / "part")
    assert_same(from_pretrained(tmp_path / "part"), small.bert)
    parallel = nn.DataParallel(model)
    wide: Any = slice_heads(parallel, selection.kept, batch=tiny.batch())
    with pytest.raises(ValueError, match="not a transformers model; pass the one inside it"):
        save_pretrained(wide, tmp_path / "parallel")
    save_pretrained(wide.module, tmp_path / "parallel")
    assert_same(from_pretrained(tmp_path / "parallel"), small)


def test_attention_made_explicit_after_slicing_is_part_of_the_selection(tmp_path: Path) -> None:
    vision = tiny.configure("SiglipVisionConfig", num_hidden_layers=1)
    model = transformers.SiglipVisionModel(vision)
    small = slice_heads(model, np.array([True, False, False, True]))
    explicit_attention(small)
    plan = selection_of(small)
    assert plan is not None and plan.kept.tolist() == [True, False, False, True, *[True] * 4]
    save_pretrained(small, tmp_path / "pruned")
    loaded = from_pretrained(tmp_path / "pruned")
    for name, weight in small.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight), name


@pytest.mark.filterwarnings("ignore")  # torch announces the end of its own quantisation
def test_a_model_that_was_quantised_since_still_knows_its_selection() -> None:
    small = sliced()
    quantise: Any = torch.ao.quantization.quantize_dynamic
    found = selection_of(quantise(small, {nn.Linear}, dtype=torch.qint8))
    plan = selection_of(small)
    assert found is not None and plan is not None and found.heads() == plan.heads()


class Packed(nn.Linear):
    """A layer of a quantiser."""


class PackedBert(transformers.BertForSequenceClassification):  # type: ignore[no-untyped-call]
    """Replaces a layer once it is built and sliced, as quantisers do."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded: Any = super().from_pretrained(*args, **kwargs)
        for layer in loaded[0].bert.encoder.layer:
            layer.attention.output.dense = Packed(8, 32)
        return loaded


def test_a_loader_that_packs_layers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    save_pretrained(sliced(), tmp_path / "pruned")
    with pytest.raises(UnsupportedModelError, match="is a Packed, .*quantise after slicing"):
        from_pretrained(tmp_path / "pruned", model_class=PackedBert)


@pytest.mark.parametrize("seed", range(3))
def test_deep_models_load_in_another_precision(seed: int, tmp_path: Path) -> None:
    """Where rounding grows from layer to layer, the answers are far apart, and no others would be right."""
    model = tiny.LLAMA_GQA.build(num_hidden_layers=24, seed=seed)
    small = slice_heads(model, uneven(find_attention(model).space))
    save_pretrained(small, tmp_path / "pruned")
    loaded = from_pretrained(tmp_path / "pruned", dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
