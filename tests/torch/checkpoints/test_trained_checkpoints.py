"""Sliced models that the stock `save_pretrained`, the Trainer and others saved, and folders that mislead."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import BUILDS, Family, outputs, sliced, to, uneven
from torch import nn

from cahp_opt.files.records import RecordError
from cahp_opt.torch.blocks.finder import find_attention
from cahp_opt.torch.checkpoints.checkpoint import SELECTION_FILE, from_pretrained, save_pretrained
from cahp_opt.torch.checkpoints.model_loading import load_model
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads

# Tools announce the end of each other's interfaces; that is not ours to fail on.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*pin_memory"
)

WEIGHTS = "cahp_weights.safetensors"


def train(model: nn.Module) -> None:
    """Change every weight that can be trained."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.25)


def assert_same(loaded: nn.Module, saved: nn.Module) -> None:
    assert type(loaded) is type(saved)
    pairs = zip(loaded.named_parameters(), saved.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and a.dtype == b.dtype and a.requires_grad == b.requires_grad, name
        assert torch.equal(a, b), name
    mine, theirs = selection_of(loaded), selection_of(saved)
    assert mine is not None and theirs is not None
    # A configuration does not hold which neurons a group had.
    assert mine.space.unordered() == theirs.space.unordered() and mine.heads() == theirs.heads()
    assert dict(mine.provenance).items() >= dict(theirs.provenance).items()


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_two_sets_of_weights_are_refused_by_name(shards: bool, tmp_path: Path) -> None:
    """Trained, and saved by the stock into the folder it came from: which of the two is meant?"""
    size = {"max_shard_size": "20KB"} if shards else {}
    save_pretrained(sliced(), tmp_path / "pruned", **size)  # type: ignore[arg-type]
    model = from_pretrained(tmp_path / "pruned")
    train(model)
    model.save_pretrained(str(tmp_path / "pruned"), **size)
    added = ".index.json" if shards else ""
    with pytest.raises(RecordError) as caught:
        from_pretrained(tmp_path / "pruned")
    told = str(caught.value)
    assert f"{WEIGHTS}{added} (from `cahp_opt.torch.save_pretrained`)" in told
    assert f"model.safetensors{added} (from the stock `save_pretrained`)" in told
    assert f"the last one written is model.safetensors{added}. Move" in told
    for old in (tmp_path / "pruned").glob("cahp_weights*"):
        old.unlink()
    assert_same(from_pretrained(tmp_path / "pruned"), model)
    save_pretrained(model, tmp_path / "trained")  # what the sentence says
    assert_same(from_pretrained(tmp_path / "trained"), model)


@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("model.safetensors.index.json", {}),
        ("pytorch_model.bin", {}),
        ("model.cahp.safetensors", {}),
        ("model.safetensors.index.cahp.json", {"dtype": torch.float16}),
    ],
)
def test_any_two_sets_are_refused(other: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The stock leaves one whole file beside the shards that it writes later, and reads the old one."""
    small = sliced()
    small.save_pretrained(str(tmp_path))
    (tmp_path / other).write_text("{}")
    with pytest.raises(RecordError, match="2 sets of weights"):
        from_pretrained(tmp_path, **options)


def test_the_shards_that_the_stock_leaves_a_whole_file_beside(tmp_path: Path) -> None:
    small = sliced()
    small.save_pretrained(str(tmp_path))
    train(small)
    small.save_pretrained(str(tmp_path), max_shard_size="20KB")
    if (tmp_path / "model.safetensors").exists():
        with pytest.raises(RecordError, match="2 sets of weights"):
            from_pretrained(tmp_path)
    else:
        assert_same(from_pretrained(tmp_path), small)


NAMED = {build.name: build for build in BUILDS}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-gqa", "t5", "bart", "clip", "vit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_the_stock_saves_of_a_sliced_model_loads(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Sharded too, with tied weights and blocks without units, in the precision that was saved."""
    family = NAMED[name]
    model = family.build().to(dtype)
    kept = uneven(find_attention(model).space, empty=0)
    small = slice_heads(model, kept, batch=to(family.batch(), dtype))
    train(small)
    small.save_pretrained(str(tmp_path), max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = from_pretrained(tmp_path)
    assert_same(loaded, small)
    mine, theirs = (outputs(m, to(family.batch(), dtype)) for m in (loaded, small))
    assert mine and all(torch.equal(mine[key], theirs[key]) for key in theirs)
    train(loaded)
    loaded.save_pretrained(str(tmp_path / "again"))
    assert_same(from_pretrained(tmp_path / "again"), loaded)


@pytest.mark.parametrize("family", [tiny.BERT, tiny.LLAMA_GQA], ids=lambda f: f.name)
def test_checkpoints_of_the_trainer_load(family: Family, tmp_path: Path) -> None:
    """Of a model cut in heads and neurons."""
    pytest.importorskip("accelerate")
    save_pretrained(sliced(family, neurons=True), tmp_path / "pruned")
    model = from_pretrained(tmp_path / "pruned")
    batch = tiny.batch(size=4, padded=False)
    labels = batch["input_ids"] if family.generates else torch.arange(4) % 3
    rows = [{"input_ids": batch["input_ids"][i], "labels": labels[i]} for i in range(4)]
    options: dict[str, Any] = {"max_steps": 2, "save_steps": 1, "learning_rate": 0.05}
    options |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "steps"}
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path / "runs"), **options)
    trainer: Any = transformers.Trainer(model, args=arguments, train_dataset=rows)
    trainer.train()
    last = from_pretrained(tmp_path / "runs" / "checkpoint-2")
    assert_same(last, model)
    first = from_pretrained(tmp_path / "runs" / "checkpoint-1")
    assert not torch.equal(next(first.parameters()), next(last.parameters()))
    again: Any = transformers.Trainer(first, args=arguments, train_dataset=rows)
    again.train(resume_from_checkpoint=str(tmp_path / "runs" / "checkpoint-1"))
    assert_same(first, last)
    # The command line takes it too, and other classes of the model.
    assert_same(load_model(str(tmp_path / "runs" / "checkpoint-2"), device="cpu"), model)
    inner = from_pretrained(tmp_path / "runs" / "checkpoint-2", model_class=type(model.base_model))
    assert torch.equal(tiny.run(inner, tiny.batch()), tiny.run(model.base_model, tiny.batch()))


def test_a_model_sliced_twice_takes_its_last_selection_along(tmp_path: Path) -> None:
    first = sliced(tiny.LLAMA_GQA, empty=None)
    second = slice_heads(first, uneven(find_attention(first).space, empty=1))
    second.save_pretrained(str(tmp_path / "second"))
    first.save_pretrained(str(tmp_path / "first"))
    assert_same(from_pretrained(tmp_path / "second"), second)
    assert_same(from_pretrained(tmp_path / "first"), first)


def test_the_unpruned_model_takes_nothing_along(tmp_path: Path) -> None:
    dense: Any = tiny.BERT.build()
    slice_heads(dense, uneven(find_attention(dense).space))
    dense.save_pretrained(str(tmp_path))
    assert "cahp" not in (tmp_path / "config.json").read_text()
    with pytest.raises(
        RecordError, match=f"has no {SELECTION_FILE}, so it is not a folder of a sl"
    ):
        from_pretrained(tmp_path)


def test_a_checkpoint_that_an_earlier_release_loaded_needs_the_file(tmp_path: Path) -> None:
    small = sliced()
    save_pretrained(small, tmp_path / "pruned")
    del small.config.cahp_selection  # as such a release leaves it
    train(small)
    small.save_pretrained(str(tmp_path / "trained"))
    with pytest.raises(RecordError, match="copy that model's file beside it"):
        from_pretrained(tmp_path / "trained")
    shutil.copy(tmp_path / "pruned" / SELECTION_FILE, tmp_path / "trained")
    loaded = from_pretrained(tmp_path / "trained")
    assert torch.equal(tiny.run(loaded, tiny.batch()), tiny.run(small, tiny.batch()))


def test_a_part_that_was_sliced_alone_is_told(tmp_path: Path) -> None:
    model: Any = NAMED["clip"].build()
    tower = model.text_model
    slice_heads(tower, uneven(find_attention(tower).space), in_place=True, batch=tiny.batch())
    model.save_pretrained(str(tmp_path))
    with pytest.raises(RecordError, match="only a part was sliced; save such a model with"):
        from_pretrained(tmp_path)


def test_adapters_and_weights_alone_are_told_apart(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    accelerate = pytest.importorskip("accelerate")
    small = sliced()
    wanted = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    tuned = peft.get_peft_model(copy.deepcopy(small), peft.LoraConfig(r=2, **wanted))
    tuned.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(RecordError, match=r"holds an adapter and not the model.*PeftModel"):
        from_pretrained(tmp_path / "adapter")
    accelerate.Accelerator(cpu=True).save_model(small, str(tmp_path / "alone"))
    with pytest.raises(RecordError, match=r"weights without a config\.json.*load_checkpoint_in"):
        from_pretrained(tmp_path / "alone")
    other = sliced(seed=1)
    accelerate.load_checkpoint_in_model(other, str(tmp_path / "alone"))  # what the sentence says
    assert torch.equal(tiny.run(other, tiny.batch()), tiny.run(small, tiny.batch()))
    torch.save(small, tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"is a file; load it with `torch\.load`"):
        from_pretrained(tmp_path / "model.pt")


@pytest.mark.parametrize("lost", ["index", "weights"])
def test_weights_that_were_lost_are_told(lost: str, tmp_path: Path) -> None:
    save_pretrained(sliced(), tmp_path, max_shard_size="20KB" if lost == "index" else None)
    for path in tmp_path.glob("*.index.json" if lost == "index" else "*.safetensors"):
        path.unlink()
    with pytest.raises(RecordError, match="has no file of weights"):
        from_pretrained(tmp_path)


def test_pickled_weights_are_read_only_if_asked(tmp_path: Path) -> None:
    small = sliced()
    small.save_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save(small.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RecordError, match=r"pickled weights, pytorch_model\.bin.*use_safetensors"):
        from_pretrained(tmp_path)
    assert_same(from_pretrained(tmp_path, use_safetensors=False), small)


OPTIONS: list[dict[str, Any]] = [
    {"variant": "cahp"},
    {"variant": "cahp_weights"},
    {"variant": ""},
    {"use_safetensors": False},
    {"use_safetensors": True},
    {"local_files_only": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_no_option_of_the_stock_loader_finds_the_weights(
    options: dict[str, Any], shards: bool, tmp_path: Path
) -> None:
    size = {"max_shard_size": "20KB"} if shards else {}
    save_pretrained(sliced(), tmp_path, **size)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or not shards
    for loader in (transformers.AutoModel, transformers.BertForSequenceClassification):
        with pytest.raises(OSError, match="no file named"):
            loader.from_pretrained(str(tmp_path), ignore_mismatched_sizes=True, **options)


def test_configurations_and_their_fields_may_be_given(tmp_path: Path) -> None:
    save_pretrained(sliced(), tmp_path)
    config = transformers.BertConfig.from_pretrained(str(tmp_path))
    config.classifier_dropout = 0.25
    for options in ({"config": config}, {"classifier_dropout": 0.25}):
        loaded = from_pretrained(tmp_path, **options)
        assert loaded.config.classifier_dropout == loaded.dropout.p == 0.25
        assert not hasattr(loaded.config, "transformers_weights")
    assert not hasattr(config, "transformers_weights")


def _classes_by_hand(model: Any) -> None:
    model.classifier = nn.Linear(tiny.HIDDEN, 7)


def _words_by_hand(model: Any) -> None:
    model.bert.embeddings.word_embeddings = nn.Embedding(tiny.VOCABULARY + 1, tiny.HIDDEN)


def _layer_removed(model: Any) -> None:
    del model.bert.encoder.layer[-1]


def _norm_removed(model: Any) -> None:
    model.bert.embeddings.LayerNorm = nn.Identity()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            _classes_by_hand,
            r"classifier\.weight is of shape \[7, 32\] in the model and of shape \[3",
        ),
        (_words_by_hand, r"word_embeddings\.weight is of shape \[49, 32\].*\[48, 32\]"),
        (_layer_removed, r"layer\.2\.\S+ is absent in the model and of shape"),
        (_norm_removed, r"LayerNorm\.weight is absent in the model and of shape \[32\]"),
    ],
)
def test_models_that_are_not_what_their_configuration_describes(
    change: Any, words: str, tmp_path: Path
) -> None:
    small = sliced()
    change(small)
    with pytest.raises(ValueError, match=words):
        save_pretrained(small, tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


class Dropping(transformers.BertModel):  # type: ignore[no-untyped-call]
    """A class that looks at numbers while it is built, as schedules of stochastic depth do."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]


def test_classes_that_look_at_numbers_while_they_are_built_are_saved(tmp_path: Path) -> None:
    model: Any = Dropping(tiny.BERT.config())
    model.eval()
    small = slice_heads(model, uneven(find_attention(model).space))
    before = torch.random.get_rng_state()
    save_pretrained(small, tmp_path / "pruned")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (tmp_path / "pruned" / WEIGHTS).is_file()


def test_changes_that_the_configuration_knows_of_are_saved(tmp_path: Path) -> None:
    small = sliced()
    small.resize_token_embeddings(tiny.VOCABULARY + 5)
    save_pretrained(small, tmp_path / "pruned")
    assert_same(from_pretrained(tmp_path / "pruned"), small)


@pytest.mark.parametrize("name", [r"C:\models\pruned v2", "modèle 模型", "model.cahp.safetensors"])
def test_odd_names_of_folders(name: str, tmp_path: Path) -> None:
    small = sliced()
    save_pretrained(small, tmp_path / name)
    assert_same(from_pretrained(f"{tmp_path / name}/"), small)


def test_metadata_of_the_weights_does_not_matter(tmp_path: Path) -> None:
    small = sliced()
    save_pretrained(small, tmp_path)
    file = tmp_path / WEIGHTS
    save_file(load_file(file), file, metadata={"format": "pt", "step": "7"})
    assert_same(from_pretrained(tmp_path), small)
