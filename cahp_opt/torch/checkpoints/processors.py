"""Loading what makes a model's inputs from images or recordings, by the model's name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers

from cahp_opt.runs.media import Medium
from cahp_opt.torch.checkpoints.load_errors import ModelError, explained
from cahp_opt.torch.checkpoints.model_loading import load_tokenizer


@dataclass(frozen=True)
class Preparation:
    """What makes a model's inputs, and the tokenizer of what it writes; both are saved with a pruned model.

    Args:
        processor: the image processor, or the feature extractor of sound.
        tokenizer: the tokenizer beside it; None without one.
    """

    processor: Any
    tokenizer: Any

    def save_pretrained(self, save_directory: str, /) -> None:
        """Write both to a folder."""
        for part in (self.processor, self.tokenizer):
            if part is not None:
                part.save_pretrained(save_directory)


def load_processor(name: str, medium: Medium, *, trust_remote_code: bool = False) -> Preparation:
    """The image processor, or the feature extractor of sound, that was saved beside a model, and its tokenizer
    if it has one.

    Args:
        name: a folder or a hub id.
        medium: what the model reads; no texts.
        trust_remote_code: run the code that comes with them.

    Raises:
        ModelError: if there is none that can be loaded, or a package is missing that it needs.
    """
    if medium is Medium.IMAGE and find_spec("PIL") is None:
        raise ModelError(
            'images are read by Pillow; install it, with `pip install "cahp-opt[images]"`.'
        )
    stock: Any = transformers
    what, auto = "the image processor", "AutoImageProcessor"
    if medium is Medium.SOUND:
        what, auto = "the feature extractor", "AutoFeatureExtractor"
    with explained(name, what):
        processor = getattr(stock, auto).from_pretrained(
            name, local_files_only=Path(name).is_dir(), trust_remote_code=trust_remote_code
        )
    try:
        return Preparation(processor, load_tokenizer(name, trust_remote_code=trust_remote_code))
    except ModelError:
        return Preparation(processor, None)
