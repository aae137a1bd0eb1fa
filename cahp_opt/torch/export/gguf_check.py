"""Whether llama.cpp computes what the model in PyTorch computes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cahp_opt.torch.export.refusals import ExportError
from cahp_opt.torch.running.batches import device_of
from cahp_opt.torch.running.undisturbed import evaluating

_PROMPTS = (8, 3)
_TOKENS = 12
_ALLOWED = {torch.float32: 0.03}
_ALLOWED_IN_HALF = 0.5
"""The difference of two log-probabilities. llama.cpp keeps keys and values in half precision, and with weights in
half precision multiplies in it too."""


_TEXTS = (
    "Hello world, it's 1234 o'clock!",
    "  two  spaces\n\nand\ttabs, a na\u00efve caf\u00e9  ",
    "\u4f60\u597d \U0001f600 WE'LL (see) 55555\r\n\r\nend   ",
)
"""Texts on which tokenizers differ."""


def check_by_running(model: nn.Module, tokenizer: Any, file: Path) -> None:
    """Run a GGUF file, and compare its greedy tokens and their log-probabilities with those of the model, and the
    ids of a few texts with those of the tokenizer.

    Where llama.cpp takes another token than the model, the model must find both as likely, within rounding.

    Raises:
        ExportError: if the file cannot be run, or computes something else.
    """
    config: Any = model.config
    dtype = next(p.dtype for p in model.parameters())
    # What is rounded in half precision, and when, is another matter in every program.
    exact = model if dtype == torch.float32 else copy.deepcopy(model).float()
    generator = torch.Generator().manual_seed(0)
    prompts = [
        [int(token) for token in torch.randint(0, config.vocab_size, (n,), generator=generator)]
        for n in _PROMPTS
    ]
    allowed = _ALLOWED.get(dtype, _ALLOWED_IN_HALF)
    greedy, ids = run_file(file, prompts, _TOKENS, _TEXTS)
    for text, made in zip(_TEXTS, ids, strict=True):
        if made != tokenizer(text)["input_ids"]:
            raise ExportError(
                f"llama.cpp makes other tokens of {text!r} than the tokenizer; it cannot be written for llama.cpp."
            )
    for prompt, steps in zip(prompts, greedy, strict=True):
        told = _log_probabilities(exact, prompt, [token for token, _ in steps])
        for place, ((token, theirs), ours) in enumerate(zip(steps, told, strict=True)):
            difference = 0.0 if theirs is None else abs(float(ours[token]) - theirs)
            behind = float(ours.max() - ours[token])
            if not (difference <= allowed and behind <= allowed):
                raise ExportError(
                    f"llama.cpp computes something else than the model: its token {place + 1} after a prompt, "
                    f"{token}, has a log-probability of {theirs}, and in PyTorch {float(ours[token]):.4f}; the likeliest "
                    f"one there is {int(ours.argmax())}."
                )


def run_file(
    file: Path, prompts: list[list[int]], tokens: int, texts: Sequence[str] = ()
) -> tuple[list[list[tuple[int, float | None]]], list[list[int]]]:
    """The greedy tokens of llama.cpp after every prompt of ids, each with its log-probability where it
    tells that, and the ids of texts.

    Raises:
        ExportError: if the file cannot be run.
    """
    asked = {
        "file": str(file),
        "prompts": prompts,
        "tokens": tokens,
        "texts": list(texts),
        "length": max(map(len, prompts)) + tokens + 32,
        "threads": torch.get_num_threads(),
    }
    script = Path(__file__).with_name("llama_cpp_run.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0 or not run.stdout.strip():
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        wrong = [line for line in lines if "error" in line.lower()] or lines
        raise ExportError(
            f"llama.cpp cannot run the file (exit status {run.returncode}): {' '.join(wrong[:2])}"
        )
    greedy, ids = json.loads(run.stdout.strip().splitlines()[-1])
    return greedy, ids


def _log_probabilities(model: nn.Module, prompt: list[int], taken: list[int]) -> Tensor:
    """The log-probabilities before every token that was taken, ``[tokens, vocabulary]``."""
    ids = torch.tensor([[*prompt, *taken]], device=device_of(model))
    with torch.no_grad(), evaluating(model):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1].float().log_softmax(-1).cpu()
