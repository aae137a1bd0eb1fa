"""Images and recordings as batches: nothing is padded, and a damaged file is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images need Pillow")

import tiny_models
import torch
from media_files import (
    RATE,
    SOUND,
    image_processor,
    pictures,
    recordings,
    sound_extractor,
    write_wave,
)

from cahp_opt.runs.media import Medium
from cahp_opt.runs.media_folders import MediaFolder
from cahp_opt.runs.texts import TextError
from cahp_opt.torch.texts.decoder_inputs import with_own_words
from cahp_opt.torch.texts.files import encode_files
from cahp_opt.torch.texts.waves import read_wave


def wav2vec2() -> Any:
    make = tiny_models.of_transformers("Wav2Vec2ForSequenceClassification")
    return make(tiny_models.configure("Wav2Vec2Config", **SOUND)).eval()


def encoded(folder: Path, medium: Medium, model: Any, **options: Any) -> list[dict[str, Any]]:
    processor = image_processor() if medium is Medium.IMAGE else sound_extractor()
    usual = {"batch_size": 5, "max_seconds": 9.0, "max_length": 9}
    return encode_files(list(MediaFolder(folder, medium)), processor, model, **{**usual, **options})


def test_images_of_any_size(tmp_path: Path) -> None:
    batches = encoded(pictures(tmp_path / "images"), Medium.IMAGE, tiny_models.named("vit").build())
    size = tiny_models.PIXELS
    assert sorted(len(batch["labels"]) for batch in batches) == [4, 5, 5, 5, 5]
    assert {tuple(batch["pixel_values"].shape[1:]) for batch in batches} == {(3, size, size)}
    labels = torch.cat([batch["labels"] for batch in batches])
    assert labels.bincount().tolist() == [8, 8, 8]


def test_recordings_of_one_length_are_together(tmp_path: Path) -> None:
    place = recordings(tmp_path / "sounds")
    batches = encoded(place, Medium.SOUND, wav2vec2())
    lengths = [batch["input_values"].shape[1] for batch in batches]
    assert sorted(lengths) == [120, 120, 120, 121, 121, 121]
    assert all(batch.keys() == {"input_values", "labels"} for batch in batches)
    cut = encoded(place, Medium.SOUND, wav2vec2(), max_seconds=0.25)
    assert {batch["input_values"].shape[1] for batch in cut} == {RATE // 4}


@pytest.mark.parametrize(
    ("width", "numbers", "expected"),
    [
        (1, [0, 128, 192], [-1, 0, 0.5]),
        (2, [-(2**15), 0, 2**14], [-1, 0, 0.5]),
        (3, [-(2**23), 0, 2**22], [-1, 0, 0.5]),
        (4, [-(2**31), 0, 2**30], [-1, 0, 0.5]),
    ],
)
def test_whole_numbers_of_every_width(
    width: int, numbers: list[int], expected: list[float], tmp_path: Path
) -> None:
    path = tmp_path / "one.wav"
    write_wave(path, numbers, width=width)
    np.testing.assert_array_equal(read_wave(path, RATE, 9), np.array(expected, np.float32))
    write_wave(path, np.repeat(numbers, 2), width=width, channels=2)
    np.testing.assert_array_equal(
        read_wave(path, RATE, 2 / RATE), np.array(expected[:2], np.float32)
    )


def test_channels_are_averaged(tmp_path: Path) -> None:
    write_wave(tmp_path / "two.wav", [2**14, 0, 0, -(2**14)], channels=2)
    assert read_wave(tmp_path / "two.wav", RATE, 9).tolist() == [0.25, -0.25]


def test_what_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(TextError, match="one.wav is not a WAV file"):
        read_wave(path, RATE, 9)
    write_wave(path, [])
    with pytest.raises(TextError, match="holds no sound"):
        read_wave(path, RATE, 9)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    place = pictures(tmp_path / "images", classes=2, each=1)
    (place / "LABEL_0" / "notes.txt").write_text("")
    (place / ".hidden").mkdir()
    (place / ".hidden" / "0.png").write_bytes(b"")
    folder = MediaFolder(place, Medium.IMAGE)
    assert [(Path(e.text).name, e.label) for e in folder] == [
        ("0.png", "LABEL_0"),
        ("0.png", "LABEL_1"),
    ]
    assert len(folder.notes) == 1 and folder.notes[0].endswith("left out: 1.")
    (place / "LABEL_0" / "0.png").rename(place / "0.png")
    with pytest.raises(TextError, match="of the 2 files .*, 1 lie in no folder"):
        MediaFolder(place, Medium.IMAGE)
    with pytest.raises(TextError, match="holds no recordings among its 3 files"):
        MediaFolder(place, Medium.SOUND)
    with pytest.raises(TextError, match="is not there"):
        MediaFolder(place / "more", Medium.SOUND)


def test_linked_folders_are_read_and_circles_end(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    there = len(list(MediaFolder(tmp_path / "images", Medium.IMAGE)))
    first = next(path for path in sorted((tmp_path / "images").iterdir()) if path.is_dir())
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "dog").symlink_to(first)
    (tmp_path / "linked" / "all").symlink_to(tmp_path / "images")
    (tmp_path / "linked" / "circle").symlink_to(tmp_path / "linked")
    found = list(MediaFolder(tmp_path / "linked", Medium.IMAGE))
    assert {example.label for example in found} == {"dog", "all"}
    assert len(found) > there


def test_what_a_model_writes_ends_where_it_says() -> None:
    model: Any = tiny_models.named("whisper").build()
    batch = {
        name: value
        for name, value in tiny_models.named("whisper").batch().items()
        if name == "input_features"
    }
    model.config.eos_token_id = None
    model.generation_config.eos_token_id = None
    whole = with_own_words(batch, model, most=5)
    assert bool(whole["decoder_attention_mask"].all())
    end = int(whole["decoder_input_ids"][0, 1])
    model.generation_config.eos_token_id = [end, 1]
    found = with_own_words(batch, model, most=5)["decoder_attention_mask"]
    assert found[0].sum() == 1
