"""Models that come in by name: whole, with their head, or with one sentence that says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="models need PyTorch")

import tiny_models
import torch
import transformers
from command_line import make_tokenizer, refused, sentences
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from cahp_opt import HeadStats
from cahp_opt.cli import main
from cahp_opt.torch.checkpoints.model_loading import (
    ModelError,
    device_named,
    load_model,
    load_tokenizer,
)
from cahp_opt.torch.texts.decoder_inputs import with_same_text

BY_NAME = {family.name: family for family in tiny_models.BUILDS}
Damage = Callable[[Path], object]


def save(folder: Path, family: str, cls: str = "", **fields: Any) -> Path:
    """A tiny model of any class of a family, with a tokenizer."""
    known = BY_NAME[family]
    model: Any = tiny_models.of_transformers(cls or known.headed)(known.config(**fields))
    tiny_models.stir(model)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def edit(folder: Path, **fields: Any) -> None:
    """Change the configuration; None removes an entry."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(sentences(30)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny", "bert")


@pytest.fixture
def copied(classifier: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classifier, tmp_path / "copy"))


def prune(model: Path | str, text: Path, output: Path, *options: str) -> int:
    small = ["--held-out", "6", "--batch-size", "8", "--threads", "1", "--heads", "8"]
    timed = ["--repeats", "1", "--latency-batch-size", "2", "--sequence-length", "8"]
    where = ["--text", str(text), "--output-dir", str(output)]
    return main(["prune", str(model), *where, *small, *timed, *options])


# -- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "cls"),
    [
        ("bert", "BertForQuestionAnswering"),
        ("bert", "BertForNextSentencePrediction"),
        ("bert", "BertForTokenClassification"),
        ("roberta", "RobertaForQuestionAnswering"),
        ("gpt2", "GPT2ForQuestionAnswering"),
        ("bart", "BartForConditionalGeneration"),
    ],
)
def test_the_class_that_was_saved_is_pruned_and_saved(
    family: str, cls: str, text: Path, tmp_path: Path
) -> None:
    model, output = save(tmp_path / "model", family, cls, num_labels=2), tmp_path / "pruned"
    recovery = ["--recovery", "none"] if family == "bart" else []
    assert prune(model, text, output, *recovery) == 0
    assert json.loads((output / "config.json").read_text())["architectures"] == [cls]
    before, after = (
        load_file(model / "model.safetensors"),
        load_file(output / "cahp_weights.safetensors"),
    )
    assert before.keys() == after.keys()
    fidelity = json.loads((output / "report.json").read_text())["fidelity"]
    assert fidelity["examples"] == 6
    if cls.endswith("ForQuestionAnswering"):
        assert fidelity["before"].keys() == {"kl", "agreement"}


# -- encoder-decoders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "cls"),
    [
        ("t5", "T5ForConditionalGeneration"),
        ("t5", "T5EncoderModel"),
        ("t5", "T5ForSequenceClassification"),
        ("marian", "MarianMTModel"),
        ("bart", "BartForSequenceClassification"),
    ],
)
def test_encoder_decoders_read_texts_through_every_command(
    family: str, cls: str, text: Path, tmp_path: Path
) -> None:
    labels = (
        3 if family == "bart" else 2
    )  # what the configuration of BART takes as its usual number
    layers = (
        ("num_layers", "num_decoder_layers")
        if family == "t5"
        else ("encoder_layers", "decoder_layers")
    )
    sizes = {**dict.fromkeys(layers, 1), "num_labels": labels}
    model = save(tmp_path / "model", family, cls, eos_token_id=3, pad_token_id=0, **sizes)
    output, stats = tmp_path / "pruned", tmp_path / "stats.safetensors"
    assert prune(model, text, output, "--recovery", "none") == 0
    assert json.loads((output / "config.json").read_text())["architectures"] == [cls]
    few = ["--gradient-examples", "4", "--sensitivity-examples", "4", "--output", str(stats)]
    assert main(["calibrate", str(model), "--text", str(text), *few]) == 0
    measured = HeadStats.load(stats)
    # Of tiny feed-forward parts ReLU may let nothing through.
    heads = measured.space.of_attention[measured.space.block_of]
    assert measured.examples == 30 - 6 and measured.salience.sum[heads].all()
    quick = ["--repeats", "1", "--batch-size", "2", "--sequence-length", "8"]
    assert main(["latency", str(model), *quick, "--output", str(tmp_path / "latency.json")]) == 0


def test_the_decoder_reads_the_text_one_token_later() -> None:
    bart, t5 = BY_NAME["bart"].build(), BY_NAME["t5"].build()
    batch = tiny_models.batch()
    for model, start in ((t5, 1), (bart, 1)):
        read = with_same_text(batch, model)
        assert (read["decoder_input_ids"][:, 0] == start).all()
        assert torch.equal(read["decoder_input_ids"][:, 1:], batch["input_ids"][:, :-1])
        assert torch.equal(read["decoder_attention_mask"], batch["attention_mask"])
    # BART reads the same by itself where it is given nothing else.
    torch.testing.assert_close(
        tiny_models.run(bart, with_same_text(batch, bart)), tiny_models.run(bart, batch)
    )
    given = {**batch, "decoder_input_ids": batch["input_ids"]}
    assert with_same_text(given, t5) is given
    for family, cls in (("bert", ""), ("bart", "BartForSequenceClassification")):
        other = BY_NAME[family].build() if not cls else BY_NAME[family].config()
        other = other if not cls else getattr(transformers, cls)(other)
        assert with_same_text(batch, other) is batch


def test_a_model_that_texts_do_not_reach_is_refused_at_the_door(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"is_decoder": True, "is_encoder_decoder": False}
    model = save(tmp_path / "model", "bart", "BartForCausalLM", **fields)
    run = partial(prune, model, text, tmp_path / "out")
    refused(capsys, 2, "does not use its block model.decoder.layers.0.encoder_attn", run=run)
    run = partial(main, ["calibrate", str(model), "--text", str(text), "--output", "no.st"])
    refused(capsys, 2, "does not use its block model.decoder.layers.0.encoder_attn", run=run)


@pytest.mark.parametrize(
    ("family", "cls", "fields"),
    [
        ("bert", "BertForQuestionAnswering", {"num_labels": 3}),  # start and end are two
        ("bart", "BartForSequenceClassification", {"eos_token_id": 47}),  # which no text ends with
    ],
)
def test_a_model_that_texts_do_not_run_through_is_refused_at_the_door(
    family: str,
    cls: str,
    fields: dict[str, Any],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save(tmp_path / "model", family, cls, **fields)
    run = partial(prune, model, text, tmp_path / "out")
    refused(capsys, 2, cls, "cannot be run on these texts", run=run)
    run = partial(main, ["calibrate", str(model), "--text", str(text), "--output", "no.st"])
    refused(capsys, 2, cls, "cannot be run on these texts", run=run)


# -- heads that are not understood -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "part"),
    [
        ("BertForPreTraining", "cannot compare before and after"),
        ("BertForMultipleChoice", "the texts have no choices"),
        ("GPT2DoubleHeadsModel", "several texts per example"),
    ],
)
def test_heads_that_are_not_understood_are_refused_at_the_door(
    cls: str, part: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(tmp_path / "model", "bert" if cls.startswith("Bert") else "gpt2", cls)
    refused(capsys, 2, cls, part, run=lambda: prune(model, text, tmp_path / "out"))
    run = partial(main, ["calibrate", str(model), "--text", str(text), "--output", "no.st"])
    refused(capsys, 2, cls, part, run=run)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_multi_label_classifier_says_yes_or_no_to_every_label(
    copied: Path, text: Path, tmp_path: Path
) -> None:
    edit(copied, problem_type="multi_label_classification")
    assert prune(copied, text, tmp_path / "out", "--recovery", "none") == 0
    fidelity = json.loads((tmp_path / "out" / "report.json").read_text())["fidelity"]
    assert fidelity["before"].keys() == {"kl", "agreement"}


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"architectures": None}, ["without `architectures`", "classifier.weight"]),
        ({"architectures": []}, ["without `architectures`", "classifier.weight"]),
        ({"architectures": ["BertModel"]}, ["a BertModel", "does not take", "classifier.bias"]),
        ({"architectures": ["BertForTokenClassification"]}, ["does not take", "pooler"]),
        ({"architectures": ["BertForRanking"]}, ["BertForRanking", "does not have"]),
        ({"architectures": ["RobertaForMaskedLM"]}, ["'bert'", "do not go together"]),
        ({"num_hidden_layers": 2}, ["does not take", "encoder.layer.2", "would be lost"]),
        ({"num_hidden_layers": 4}, ["lacks the weights", "encoder.layer.3"]),
        ({"intermediate_size": 44}, ["other shapes", "intermediate"]),
        ({"num_attention_heads": 5}, ["not a multiple of the number of attention heads"]),
        ({"hidden_size": "wide"}, ["the configuration", "hidden_size"]),
        ({"model_type": "abacus"}, ["model type 'abacus'"]),
        ({"model_type": None}, ["`model_type`"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised (gptq)"]),
        (
            {"architectures": ["MyBert"], "auto_map": {"AutoModel": "modeling.MyBert"}},
            ["MyBert", "is not run without `trust_remote_code`"],
        ),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit_the_weights(
    fields: dict[str, Any], parts: list[str], copied: Path
) -> None:
    edit(copied, **fields)
    with pytest.raises(ModelError) as told:
        load_model(str(copied))
    for part in (str(copied), *parts):
        assert part in str(told.value)


def test_weights_that_nothing_takes_are_refused_before_any_work(
    copied: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copied, num_hidden_layers=2)
    for command in (
        ["prune", "--text", str(text), "--output-dir", str(tmp_path / "out")],
        ["calibrate", "--text", str(text), "--output", str(tmp_path / "no.st")],
        ["latency", "--output", str(tmp_path / "no.json")],
    ):
        run = partial(main, [command[0], str(copied), *command[1:]])
        refused(capsys, 2, "encoder.layer.2", "would be lost", run=run)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_weights_are_left_out_by_name_only(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the well-known checkpoints of BERT are: named for masked words, with a second head beside it."""
    model = save(tmp_path / "model", "bert", "BertForPreTraining")
    edit(model, architectures=["BertForMaskedLM"])
    told = "--leave-out bert.pooler.dense --leave-out cls.seq_relationship"
    refused(capsys, 2, told, run=lambda: prune(model, text, tmp_path / "out"))
    assert prune(model, text, tmp_path / "out", *told.split()) == 0
    assert "the weights of cls.seq_relationship in" in capsys.readouterr().err
    before = load_file(model / "model.safetensors")
    after = load_file(tmp_path / "out" / "cahp_weights.safetensors")
    assert before.keys() - after.keys() == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    }
    rest = ("bert.pooler", "cls.seq_relationship")
    sizes = ["--sequence-length", "8", "--repeats", "1", "--output", str(tmp_path / "latency.json")]
    with_them = [word for module in rest for word in ("--leave-out", module)]
    assert main(["latency", str(model), *sizes, *with_them]) == 0


@pytest.mark.parametrize(
    ("leave_out", "part"),
    [
        (["cls.seq"], "names nothing in"),  # part of a name, and no module
        (["bert.encoder"], "names nothing in"),  # which the class needs
        (["cls.seq_relationship"], "bert.pooler.dense"),  # what is left is told
    ],
)
def test_no_more_is_left_out_than_the_class_does_not_take(
    leave_out: list[str], part: str, tmp_path: Path
) -> None:
    model = save(tmp_path / "model", "bert", "BertForPreTraining")
    edit(model, architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError, match=part):
        load_model(str(model), leave_out=leave_out)


def test_nothing_is_left_out_of_a_whole_or_a_sliced_model(
    copied: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="names nothing in .*leave the option out"):
        load_model(str(copied), leave_out=["pooler"])
    assert prune(copied, text, tmp_path / "out", "--recovery", "none") == 0
    with pytest.raises(ModelError, match="a sliced model"):
        load_model(str(tmp_path / "out"), leave_out=["pooler"])


@pytest.mark.parametrize(
    ("cls", "block"), [("GPT2LMHeadModel", "transformer.h.1"), ("GPT2Model", "h.0")]
)
def test_constants_that_earlier_releases_saved_as_weights_are_no_weights(
    cls: str, block: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", "gpt2", cls)
    weights = load_file(folder / "model.safetensors")
    constants = {"bias": torch.ones(1, 1, 40, 40), "masked_bias": torch.tensor(-1e4)}
    weights |= {f"{block}.attn.{name}": constant for name, constant in constants.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert type(load_model(str(folder))).__name__ == cls


@pytest.mark.parametrize("named", [["BertModel"], None])
def test_bare_encoders_load_with_and_without_a_pooler(
    named: list[str] | None, tmp_path: Path
) -> None:
    config = BY_NAME["bert"].config()
    for pooler in (True, False):
        bare: Any = transformers.BertModel(config, add_pooling_layer=pooler)
        bare.save_pretrained(tmp_path / str(pooler))
        edit(tmp_path / str(pooler), architectures=named)
        loaded: Any = load_model(str(tmp_path / str(pooler)))
        assert type(loaded) is transformers.BertModel
        torch.testing.assert_close(
            loaded.embeddings.word_embeddings.weight, bare.embeddings.word_embeddings.weight
        )


def test_a_head_that_is_missing(tmp_path: Path) -> None:
    bare: Any = transformers.BertModel(BY_NAME["bert"].config())
    bare.save_pretrained(tmp_path)
    edit(tmp_path, architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError, match="weights of a BertModel without that head"):
        load_model(str(tmp_path))
    # sentence-transformers loads the class without a head, whatever the configuration names.
    (tmp_path / "modules.json").write_text("[]")
    assert type(load_model(str(tmp_path))) is transformers.BertModel


def test_a_head_over_a_pooler_that_is_missing(tmp_path: Path) -> None:
    full: Any = transformers.BertForSequenceClassification(BY_NAME["bert"].config())
    weights = {k: v for k, v in full.state_dict().items() if "pooler" not in k}
    full.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"lacks the weights bert\.pooler\.dense\.bias"):
        load_model(str(tmp_path))


def test_what_transformers_leaves_out_on_purpose_is_no_loss(tmp_path: Path) -> None:
    whole: Any = BY_NAME["t5"].build()
    whole.save_pretrained(tmp_path)
    edit(tmp_path, architectures=["T5EncoderModel"], tie_word_embeddings=True)
    weights = {
        k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "lm_head" not in k
    }
    whole.save_pretrained(tmp_path, state_dict=weights)
    edit(tmp_path, architectures=["T5EncoderModel"])
    assert type(load_model(str(tmp_path))) is transformers.T5EncoderModel


# -- what is no model of texts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "of_texts", "untimed"),
    [
        ("vit", "reads images; give them as `--images FOLDER`", "the image processor of"),
        ("whisper", "give them as `--audio FOLDER`", "the feature extractor of"),
        ("clip", "takes texts, images or recordings only", "in Python"),
    ],
)
def test_models_of_other_inputs_are_refused_at_the_door(
    family: str,
    of_texts: str,
    untimed: str,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model: Any = BY_NAME[family].build(bare=family == "clip")
    model.save_pretrained(tmp_path / "model")
    for told, command in (
        (of_texts, ["prune", "--text", str(text), "--output-dir", str(tmp_path / "out")]),
        (of_texts, ["calibrate", "--text", str(text), "--output", str(tmp_path / "no.st")]),
        (untimed, ["latency", "--output", str(tmp_path / "no.json")]),
    ):
        run = partial(main, [command[0], str(tmp_path / "model"), *command[1:]])
        refused(capsys, 2, told, run=run)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# -- code that comes with a model ------------------------------------------------------------------


def with_code(folder: Path) -> None:
    for name in ("configuration", "modeling", "tokens"):
        (folder / f"{name}.py").write_text("raise SystemExit('this ran')\n")


@pytest.fixture
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise SystemExit("this asked")

    monkeypatch.setattr("builtins.input", ask)


@pytest.mark.usefixtures("no_questions")
def test_code_of_a_model_is_never_run(
    copied: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_code(copied)
    own = {"AutoConfig": "configuration.My", "AutoModel": "modeling.My"}
    edit(copied, model_type="mine", architectures=["My"], auto_map=own)
    refused(capsys, 2, "code of its own", run=lambda: prune(copied, text, tmp_path / "out"))


@pytest.mark.usefixtures("no_questions")
def test_code_of_a_tokenizer_is_never_run(copied: Path) -> None:
    with_code(copied)
    path = copied / "tokenizer_config.json"
    config = json.loads(path.read_text())
    own = {"AutoTokenizer": ["tokens.My", None]}
    path.write_text(json.dumps({**config, "auto_map": own, "tokenizer_class": "My"}))
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="code of its own"):
        load_tokenizer(str(copied))


@pytest.mark.usefixtures("no_questions")
def test_a_class_of_transformers_stands_in_with_a_note(
    copied: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_code(copied)
    edit(copied, auto_map={"AutoModel": "modeling.My"})
    path = copied / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": [None, "tokens.My"]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    options = ["--text", str(text), "--output", str(tmp_path / "s.safetensors")]
    assert main(["calibrate", str(copied), *options]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and all("was not run" in note for note in notes)
    assert "BertForSequenceClassification stands in" in notes[0]


# -- damaged files ---------------------------------------------------------------------------------


def cut(name: str, share: float = 0.5) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def replace(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut("model.safetensors"), "model.safetensors is damaged"),
        (cut("model.safetensors", 0), "model.safetensors is damaged"),
        (replace("model.safetensors", b"version https://git-lfs"), "model.safetensors is damaged"),
        (remove("model.safetensors"), "it has no weights"),
        (cut("config.json"), "config.json is damaged"),
        (replace("config.json", b"[]"), "config.json is damaged"),
        (replace("config.json", b"\xff\xfe\x00"), "config.json is damaged"),
        (remove("config.json"), "it has no config.json"),
    ],
)
def test_damaged_folders(damage: Damage, part: str, copied: Path) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=part) as told:
        load_model(str(copied))
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut("tokenizer.json"), "tokenizer.json is damaged"),
        (replace("tokenizer.json", b"{}"), "the tokenizer"),
        (cut("tokenizer_config.json"), "tokenizer_config.json is damaged"),
        (remove("tokenizer.json"), "no tokenizer's files"),
        # What is made without any file knows its special tokens alone.
        (remove("tokenizer.json", "tokenizer_config.json"), "it has no vocabulary"),
    ],
)
def test_damaged_tokenizers(damage: Damage, part: str, copied: Path) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=part) as told:
        load_tokenizer(str(copied))
    assert len(str(told.value).splitlines()) == 1


INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-"


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder, shard: shard.unlink(), f"the shard {SHARD}"),
        (lambda folder, shard: cut(shard.name)(folder), f"{SHARD}.* is damaged"),
        (lambda folder, shard: cut(INDEX)(folder), f"{INDEX} is damaged"),
        (lambda folder, shard: (folder / INDEX).unlink(), f"names the parts \\({INDEX}"),
    ],
    ids=["no shard", "half a shard", "half an index", "no index"],
)
def test_damaged_shards(damage: Callable[[Path, Path], object], part: str, tmp_path: Path) -> None:
    model: Any = BY_NAME["bert"].build()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert load_model(str(tmp_path))
    damage(tmp_path, next(tmp_path.glob(f"{SHARD}*")))
    with pytest.raises(ModelError, match=part):
        load_model(str(tmp_path))


def test_a_damaged_folder_of_a_sliced_model(
    copied: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = tmp_path / "pruned"
    assert prune(copied, text, pruned, "--recovery", "none") == 0
    cut("cahp_weights.safetensors")(pruned)
    latency = partial(main, ["latency", str(pruned), "--output", str(tmp_path / "no.json")])
    refused(capsys, 2, str(pruned), run=latency)
    remove("cahp_weights.safetensors")(pruned)
    refused(capsys, 2, str(pruned), run=latency)


@pytest.mark.parametrize("name", ["modules.json", "a_list_of_mine.json"])
def test_a_file_with_a_list_is_not_blamed_for_another_that_is_damaged(
    name: str, copied: Path
) -> None:
    replace(name, b'[{"idx": 0, "path": ""}]')(copied)
    cut("model.safetensors")(copied)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        load_model(str(copied))
    cut(name)(copied)
    with pytest.raises(ModelError, match=f"{name} is damaged"):
        load_model(str(copied))


def test_damaged_pickles(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    assert load_model(str(copied))
    cut("pytorch_model.bin")(copied)
    with pytest.raises(ModelError, match="the weights of"):
        load_model(str(copied))


def test_adapters_are_no_models(copied: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    told = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/model"})
    (adapter / "adapter_config.json").write_text(told)
    with pytest.raises(ModelError, match=r"an adapter of some/model, .* merge it first"):
        load_model(str(adapter))
    # Beside a whole model too: transformers would load both, and saving would leave one out.
    (copied / "adapter_config.json").write_text(told)
    with pytest.raises(ModelError, match="merge it first"):
        load_model(str(copied))


# -- the hub ---------------------------------------------------------------------------------------


def http(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    answer: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Error.\n\nmore", response=answer)


def unreachable() -> Exception:
    missing = errors.LocalEntryNotFoundError("not in the cache")
    missing.__cause__ = ConnectionError("no route to host")
    return missing


def limited() -> Exception:
    missing = errors.LocalEntryNotFoundError("not in the cache")
    missing.__cause__ = http(errors.HfHubHTTPError, 429)
    return missing


@pytest.mark.parametrize(
    ("error", "offline", "part"),
    [
        (http(errors.GatedRepoError, 403), False, "it is gated on the hub"),
        (http(errors.RepositoryNotFoundError, 404), False, "the hub shows no such model"),
        (http(errors.RepositoryNotFoundError, 401), False, "for a private one log in"),
        (http(errors.HfHubHTTPError, 429), False, "limits the rate of requests"),
        (limited(), False, "limits the rate of requests"),
        (http(errors.HfHubHTTPError, 403), False, "the hub refuses access (403)"),
        (http(errors.HfHubHTTPError, 503), False, "the hub fails (503)"),
        (errors.OfflineModeIsEnabled("offline"), True, "HF_HUB_OFFLINE"),
        (errors.LocalEntryNotFoundError("not in the cache"), True, "HF_HUB_OFFLINE"),
        (unreachable(), False, "the hub cannot be reached"),
        (ConnectionError("no route to host"), False, "the hub cannot be reached"),
        (TimeoutError("timed out"), False, "the hub cannot be reached"),
        (errors.HFValidationError("bad"), False, "`owner/name`"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_hub_says_is_told_apart(
    error: Exception,
    offline: bool,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    refused(capsys, 2, "some/model", part, run=lambda: prune("some/model", text, tmp_path / "out"))


def test_an_adapter_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": "some/base"}))

    def download(repository: str, name: str, **_: object) -> str:
        if name != path.name:
            raise errors.EntryNotFoundError(name)
        return str(path)

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    monkeypatch.setattr(
        "transformers.utils.hub.try_to_load_from_cache",
        lambda repository, name, **_: str(path) if name == path.name else None,
    )
    with pytest.raises(ModelError, match=r"it is an adapter of some/base"):
        load_model("some/model")


# -- devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "hpu", "cuda:99", "fpga"])
def test_devices_that_are_known_and_absent(
    name: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remove("model.safetensors")(copied)  # the device is told before the model is looked at
    run = partial(main, ["latency", str(copied), "--device", name, "--output", "no.json"])
    refused(capsys, 2, f"`--device` {name} cannot be computed with here", run=run)
    run = partial(main, ["hardware", "--device", name, "--output", "no.json"])
    refused(capsys, 2, f"`--device` {name} cannot be computed with here", run=run)


def test_devices_that_are_there() -> None:
    assert device_named("cpu") == torch.device("cpu")
    assert device_named(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match="must be a device"):
        device_named("abacus")
