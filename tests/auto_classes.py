"""A tiny checkpoint of every class that transformers' ``AutoModelFor...`` make, and what ``cahp`` needs for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from command_line import make_tokenizer
from media_files import FAST, image_processor, sound_extractor
from scripts import BENCHMARKS
from torch import nn
from transformers.models.auto import modeling_auto

from cahp_opt.runs.media import Medium
from cahp_opt.torch.running.main_input import main_input, medium_of

_MOST = 20_000_000
"""Weights of a checkpoint, so that saving and loading it takes no time."""

PREFERRED = (
    "bert",
    "t5",
    "vit",
    "wav2vec2",
    "whisper",
    "segformer",
    "beit",
    "gpt2",
    "vilt",
    "layoutlm",
    "detr",
    "sam",
)
"""Model types that are tried before the others of a class."""


PRUNED = (
    *("AudioClassification", "AudioFrameClassification", "CausalLM", "CTC", "ImageClassification"),
    *("MaskedLM", "MultipleChoice", "NextSentencePrediction", "QuestionAnswering"),
    *("SemanticSegmentation", "Seq2SeqLM", "SequenceClassification", "SpeechSeq2Seq"),
    *("TextEncoding", "TokenClassification"),
)
"""What is pruned, by the name behind ``AutoModelFor``; everything else is refused."""


def auto_classes() -> dict[str, Any]:
    """The classes by name, without those that make nothing."""
    found = {
        name: getattr(modeling_auto, name)
        for name in sorted(vars(modeling_auto))
        if name.startswith("AutoModelFor")
    }
    return {name: cls for name, cls in found.items() if _names(cls)}


def _names(cls: Any) -> Mapping[str, Any]:
    return dict(cls._model_mapping._model_mapping)


def _shrinking() -> Any:
    """The module that makes configurations small."""
    place = str(BENCHMARKS / "architectures")
    sys.path.insert(0, place)
    try:
        import shrinking  # type: ignore[import-not-found]

        return shrinking
    finally:
        sys.path.remove(place)


def checkpoints(name: str) -> Iterator[tuple[str, nn.Module]]:
    """Tiny models of a class, one for every model type of which one can be built here."""
    shrinking = _shrinking()
    mapping = _names(auto_classes()[name])
    for model_type in sorted(mapping, key=lambda each: (each not in PREFERRED, each)):
        names = mapping[model_type]
        cls: Any = getattr(transformers, names if isinstance(names, str) else names[0], None)
        if cls is None:
            continue
        try:
            config = transformers.AutoConfig.for_model(model_type)
        except Exception:  # some configurations need others
            continue
        for sizes in shrinking.TRIALS:
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    small = shrinking.shrunk(
                        config, sizes, {"num_labels": 2 if "Answering" in name else 3}
                    )
                    with torch.device("meta"):
                        size = sum(p.numel() for p in cls(small).parameters())
                    if size > _MOST:
                        continue
                    yield model_type, cls(small).float().eval()
                break
            except Exception:  # shrinking knows no models, and many cannot be built like that
                continue


def save(model: Any, folder: Path) -> Path:
    """The model with a tokenizer, an image processor or a feature extractor, whichever it wants."""
    model.save_pretrained(folder)
    medium = medium_of(model)
    if medium is Medium.IMAGE:
        size = getattr(model.config, "image_size", 32)
        image_processor(size if isinstance(size, int) else size[0]).save_pretrained(folder)
    elif medium is Medium.SOUND and main_input(model) == "input_values":
        sound_extractor().save_pretrained(folder)
    elif medium is Medium.SOUND:
        bins = getattr(model.config, "num_mel_bins", 16)
        frames = 2 * getattr(model.config, "max_source_positions", 16)
        hop = -(-FAST // frames)
        make: Any = transformers.WhisperFeatureExtractor
        make(
            feature_size=bins, sampling_rate=hop * frames, hop_length=hop, chunk_length=1
        ).save_pretrained(folder)
    else:
        make_tokenizer().save_pretrained(folder)
    return folder
