"""Tiny models of images and recordings with their processors, and folders of files for them."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
from PIL import Image

RATE, FAST = 400, 16000
"""Samples per second: so few that five seconds are soon read, and as many as for a spectrogram."""

SOUND: dict[str, Any] = {
    "conv_dim": (8, 8),
    "conv_kernel": (4, 3),
    "conv_stride": (4, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "num_hidden_layers": 2,
}


def save_vit(folder: Path, cls: str = "ViTForImageClassification", **fields: Any) -> Path:
    """A tiny model of images and its processor."""
    model: Any = tiny_models.of_transformers(cls)(tiny_models.named("vit").config(**fields))
    return saved(folder, model, image_processor())


def save_wav2vec2(
    folder: Path, cls: str = "Wav2Vec2ForSequenceClassification", **fields: Any
) -> Path:
    """A tiny model of recordings and its feature extractor."""
    config = tiny_models.configure("Wav2Vec2Config", **{**SOUND, **fields})
    model: Any = tiny_models.of_transformers(cls)(config)
    return saved(folder, model, sound_extractor())


def save_whisper(folder: Path, cls: str = "WhisperForConditionalGeneration", **fields: Any) -> Path:
    """A tiny model that writes down recordings, and its feature extractor."""
    model: Any = tiny_models.of_transformers(cls)(tiny_models.named("whisper").config(**fields))
    make = tiny_models.of_transformers("WhisperFeatureExtractor")
    ticks, bins = tiny_models.TICKS, tiny_models.SIZES["num_mel_bins"]
    extractor = make(
        feature_size=bins, sampling_rate=FAST, hop_length=FAST // ticks, chunk_length=1
    )
    return saved(folder, model, extractor)


def saved(folder: Path, model: Any, processor: Any) -> Path:
    tiny_models.stir(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def image_processor(size: int = tiny_models.PIXELS) -> Any:
    make = tiny_models.of_transformers("ViTImageProcessor")
    return make(size={"height": size, "width": size})


def sound_extractor() -> Any:
    return tiny_models.of_transformers("Wav2Vec2FeatureExtractor")(sampling_rate=RATE)


def pictures(folder: Path, *, classes: int = 3, each: int = 8) -> Path:
    """Images of several sizes, one folder for every class."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"LABEL_{label}"
        place.mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (10 + number, 14, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def recordings(
    folder: Path, *, classes: int = 3, each: int = 8, rate: int = RATE, ticks: int = 120
) -> Path:
    """Recordings of two lengths, one folder for every class."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"LABEL_{label}"
        place.mkdir(parents=True)
        for number in range(each):
            numbers = rng.integers(-(2**14), 2**14, ticks + number % 2)
            write_wave(place / f"{number}.wav", numbers, rate=rate)
    return folder


def write_wave(
    path: Path, numbers: Any, *, rate: int = RATE, width: int = 2, channels: int = 1
) -> None:
    """A WAV file of whole numbers; those of 8 bits are written from 0 on."""
    kinds = {1: "u1", 2: "<i2", 3: "<i4", 4: "<i4"}
    data = np.asarray(numbers).astype(kinds[width])
    raw = data.tobytes() if width != 3 else data.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
