"""The class that was saved is pruned and saved, whatever its head and whatever it reads, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="models need PyTorch")
pytest.importorskip("PIL", reason="images need Pillow")

import tiny_models
from command_line import make_tokenizer, refused, sentences
from media_files import (
    FAST,
    pictures,
    recordings,
    save_vit,
    save_wav2vec2,
    save_whisper,
    write_wave,
)
from safetensors.torch import load_file

from cahp_opt.cli import main

PLAIN = ["--recovery", "none", "--objective", "explained-variance"]
OF_CLASSES = {"kl", "agreement", "dense_accuracy", "accuracy", "dense_f1", "f1"}
SMALL = ["--held-out", "6", "--batch-size", "8", "--threads", "1", "--repeats", "1"]


def save(folder: Path, family: str, cls: str, **fields: Any) -> Path:
    """A tiny model of any class of a family, with a tokenizer."""
    model: Any = tiny_models.of_transformers(cls)(tiny_models.named(family).config(**fields))
    tiny_models.stir(model)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    if model.config.is_encoder_decoder:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("images") / "classes")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings(tmp_path_factory.mktemp("sounds") / "classes")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "pairs.tsv"
    texts = sentences(40)
    rows = [f"{a}\t{b}" for a, b in zip(texts[:20], texts[20:], strict=True)]
    path.write_text("\n".join(["text\ttext_pair", *rows]) + "\n", encoding="utf-8")
    return path


def pruned(model: Path, output: Path, *given: str | Path) -> dict[str, Any]:
    """The report of a run whose saved model has every key of the checkpoint, and the same class."""
    options = ["--heads", "6", "--latency-batch-size", "2", *SMALL, *map(str, given)]
    assert main(["prune", str(model), "--output-dir", str(output), *options]) == 0
    before = load_file(model / "model.safetensors")
    after = load_file(output / "cahp_weights.safetensors")
    assert not before.keys() - after.keys()
    names = [json.loads((place / "config.json").read_text()) for place in (model, output)]
    assert names[0]["architectures"] == names[1]["architectures"]
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        assert (model / name).exists() == (output / name).exists()
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    return report


def test_images_are_judged_with_the_names_of_their_folders(images: Path, tmp_path: Path) -> None:
    model = save_vit(tmp_path / "model")
    report = pruned(model, tmp_path / "pruned", "--images", images)
    assert report["calibration_texts"] == 20 and report["medium"] == "images"
    assert report["fidelity"]["after"].keys() == OF_CLASSES
    again = ["prune", str(tmp_path / "pruned"), "--images", str(images), "--heads", "4", *SMALL]
    assert main([*again, "--recovery", "none", "--output-dir", str(tmp_path / "again")]) == 0


def test_recordings_of_two_lengths(sounds: Path, tmp_path: Path) -> None:
    model = save_wav2vec2(tmp_path / "model")
    report = pruned(model, tmp_path / "pruned", "--audio", sounds)
    assert report["calibration_texts"] == 20 and report["medium"] == "recordings"
    assert report["fidelity"]["after"].keys() == OF_CLASSES


def test_a_decoder_is_judged_on_what_the_model_writes(tmp_path: Path) -> None:
    sounds = recordings(tmp_path / "sounds", classes=1, each=24, rate=FAST)
    model = save_whisper(tmp_path / "model")
    make_tokenizer().save_pretrained(model)
    given: list[str | Path] = ["--audio", sounds, "--max-length", "6", *PLAIN]
    report = pruned(model, tmp_path / "pruned", *given)
    assert report["fidelity"]["before"].keys() == {"kl_per_token", "agreement"}


def test_pairs_are_what_an_encoder_decoder_reads_and_writes(pairs: Path, tmp_path: Path) -> None:
    model = save(tmp_path / "model", "t5", "T5ForConditionalGeneration")
    report = pruned(model, tmp_path / "pruned", "--data", pairs, "--sequence-length", "8", *PLAIN)
    expected = {"kl_per_token", "agreement", "dense_accuracy", "accuracy"}
    assert report["fidelity"]["before"].keys() == expected


@pytest.mark.parametrize(
    ("make", "option", "told"),
    [
        (save_vit, "--audio", "reads images; give them as `--images FOLDER`"),
        (save_wav2vec2, "--images", "reads recordings; give them as `--audio FOLDER`"),
        (save_wav2vec2, "--text", "reads recordings; give them as `--audio FOLDER`"),
        (partial(save, family="bert", cls="BertModel"), "--images", "`--text FILE` or `--data"),
    ],
)
def test_the_right_option_is_named(
    make: Callable[[Path], Path],
    option: str,
    told: str,
    images: Path,
    sounds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(sentences(30)))
    given = {"--images": images, "--audio": sounds, "--text": tmp_path / "texts.txt"}[option]
    run = partial(
        main, ["prune", str(model), option, str(given), "--output-dir", str(tmp_path / "out")]
    )
    refused(capsys, 2, told, run=run)


def test_one_kind_of_examples_is_given(
    images: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--images", str(images), "--audio", str(sounds)]
    run = partial(main, ["prune", "model", *both, "--output-dir", str(tmp_path / "out")])
    refused(capsys, 2, "`--images FOLDER`", "`--audio FOLDER`", run=run)


def test_a_label_that_the_model_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_vit(tmp_path / "model", num_labels=2)
    run = partial(
        main,
        [
            *("prune", str(model), "--images", str(pictures(tmp_path / "images"))),
            *("--output-dir", str(tmp_path / "out")),
        ],
    )
    refused(capsys, 2, "'LABEL_2' is not one of the model's", run=run)


def test_damaged_files_are_named(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit, place = save_vit(tmp_path / "vit"), pictures(tmp_path / "images", each=3)
    (place / "LABEL_0" / "0.png").write_bytes(b"nothing")
    out = ["--output-dir", str(tmp_path / "out")]
    run = partial(main, ["prune", str(vit), "--images", str(place), *out])
    refused(capsys, 2, "0.png is not an image", run=run)
    wav, place = save_wav2vec2(tmp_path / "wav"), recordings(tmp_path / "sounds", each=3)
    write_wave(place / "LABEL_0" / "0.wav", [1, 2, 3], rate=8000)
    run = partial(main, ["prune", str(wav), "--audio", str(place), *out])
    refused(capsys, 2, "8000 samples per second", "the model reads 400", "ffmpeg", run=run)


def test_the_processor_has_the_size_that_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_vit(tmp_path / "model")
    run = ["latency", str(model), "--repeats", "1", "--batch-size", "2", "--threads", "1"]
    out = ["--output", str(tmp_path / "latency.json")]
    assert main([*run, *out, "--sequence-length", "8"]) == 0
    assert (
        "`--sequence-length` does nothing here: the model reads no tokens"
        in capsys.readouterr().err
    )
    (model / "preprocessor_config.json").unlink()
    refused(capsys, 2, "the image processor of", run=lambda: main([*run, *out]))
