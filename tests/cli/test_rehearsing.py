"""What cannot be done in the end is refused before anything is timed or calibrated."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("torch", reason="models need PyTorch")

import small_builds
import tiny_models
import torch
from command_line import make_tokenizer, prune, refused
from torch import nn
from transformers import GenerationConfig

from cahp_opt.cli import main
from cahp_opt.runs.report import Report
from cahp_opt.torch import find_attention, slice_heads
from cahp_opt.torch.blocks.finder import Prunable
from cahp_opt.torch.pipeline import applying, calibrating, profiles
from cahp_opt.torch.pipeline.rehearsing import rehearse_saving
from cahp_opt.torch.recovery.mask_tuning import check_tunable, tune_masks
from cahp_opt.torch.recovery.refitting import check_refittable, refit

pytestmark = pytest.mark.usefixtures("threads")


class TooLateError(AssertionError):
    """Something long has begun."""


def late(*args: Any, **options: Any) -> NoReturn:
    raise TooLateError


@pytest.fixture
def nothing_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "time_blocks", late)
    monkeypatch.setattr(profiles, "count_held", late)
    monkeypatch.setattr(calibrating, "measure", late)
    monkeypatch.setattr(applying, "slice_found", late)


def save(folder: Path, built: Any) -> Path:
    built.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "why"), [("Albert", "3 times per pass"), ("Bart", "more than one attention block")]
)
@pytest.mark.parametrize("limit", [("--heads", "8"), ("--latency", "9s"), ()])
def test_a_refit_that_cannot_be_is_refused_at_once(
    tmp_path: Path,
    text: Path,
    nothing_long: None,
    capsys: pytest.CaptureFixture[str],
    name: str,
    why: str,
    limit: tuple[str, ...],
) -> None:
    folder = save(tmp_path / "model", small_builds.built(name, pad_token_id=0))
    for given in ((), ("--recovery", "mask-tuning")):
        run = partial(prune, folder, tmp_path / "out", "--text", text, *limit, *given)
        refused(capsys, 2, why, "`--recovery none`", run=run)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_recovery_such_models_are_pruned(tmp_path: Path, text: Path) -> None:
    folder = save(tmp_path / "model", small_builds.built("Albert"))
    given = ["--heads", "3", "--recovery", "none"]
    assert prune(folder, tmp_path / "out", "--text", text, *given) == 0
    assert Report.read(tmp_path / "out" / "report.json")["recovery"] == "none"
    chosen = ["--selection", str(tmp_path / "out" / "cahp_selection.json"), "--text", str(text)]
    apply = ["apply", str(folder), *chosen, "--output-dir", str(tmp_path / "again")]
    assert main(apply) == 2 and not (tmp_path / "again").exists()


@pytest.mark.parametrize("built", ["Albert", "Bart", "Swin", "GPT2", "T5"])
def test_the_rehearsal_says_what_the_refit_would(built: str) -> None:
    dense = small_builds.built(built)
    tokens = torch.arange(3, 15).view(2, 6)
    batch: dict[str, torch.Tensor] = {"input_ids": tokens}
    if built == "Swin":
        batch = {"pixel_values": torch.rand(2, 3, 16, 16)}
    elif built in ("Bart", "T5"):
        batch["decoder_input_ids"] = tokens
    said: list[str] = []
    small = slice_heads(dense, [False] + [True] * (find_attention(dense).space.n - 1), batch=batch)
    prunable = find_attention(dense)
    for run in (
        lambda: check_refittable(prunable, batch),
        lambda: refit(small, dense, [batch] * 2),
        lambda: check_tunable(prunable, batch),
        lambda: tune_masks(small, dense, [batch]),
    ):
        try:
            run()
            said.append("")
        except ValueError as error:
            said.append(str(error))
    assert len({*said}) == 1 and bool(said[0]) == (built in ("Albert", "Bart", "Swin"))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--workload", "decode:2x8"], "no key/value cache"),
        (["--workload", "prefill:2x999"], "positions"),
        (["--execution", "cuda_graph"], "CUDA"),
    ],
)
def test_what_is_timed_in_the_end_is_tried_first(
    model: Path,
    text: Path,
    tmp_path: Path,
    nothing_long: None,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    part: str,
) -> None:
    out = tmp_path / "out"
    given: list[str | Path] = ["--text", text, "--heads", "6", *options]
    refused(capsys, 2, part, run=lambda: prune(model, out, *given))


def test_a_configuration_that_cannot_be_saved(
    decoder: Path,
    text: Path,
    tmp_path: Path,
    nothing_long: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def invalid(self: Any, *args: Any, **options: Any) -> NoReturn:
        raise ValueError("GenerationConfig is invalid: `temperature` is set.\nFix it.")

    monkeypatch.setattr(GenerationConfig, "save_pretrained", invalid)
    run = partial(prune, decoder, tmp_path / "out", "--text", text, "--heads", "3")
    refused(capsys, 2, "GenerationConfig of `model` cannot be saved", run=run)


def test_models_and_tokenizers_that_cannot_be_saved(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, save_directory: str, /) -> None:
            raise ValueError("no vocabulary")

    class Own(type(tiny_models.BERT.build())):  # type: ignore[misc]
        """A class that transformers does not export."""

    bert: Any = tiny_models.BERT.build()
    rehearse_saving(find_attention(bert), None, tmp_path)
    with pytest.raises(ValueError, match="Tokenizer of `model` cannot be saved: no vocabulary;"):
        rehearse_saving(find_attention(bert), Tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="not a transformers model"):
        rehearse_saving(Prunable(nn.Linear(1, 1), ()), None, tmp_path)
    bert.config.vocab_size += 1
    with pytest.raises(ValueError, match="not what its configuration describes"):
        rehearse_saving(find_attention(bert), None, tmp_path)
    own: Any = tiny_models.BERT.build()
    own.__class__ = Own
    with pytest.raises(ValueError, match="does not export"):
        rehearse_saving(find_attention(own), None, tmp_path)
    own = tiny_models.BERT.build()
    own._hf_peft_config_loaded = True
    with pytest.raises(ValueError, match="holds adapters"):
        rehearse_saving(find_attention(own), None, tmp_path)
    assert not any(tmp_path.iterdir())


def test_fine_tuning_without_accelerate(
    model: Path,
    text: Path,
    tmp_path: Path,
    nothing_long: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[str | Path] = ["--text", text, "--recovery", "finetune", "--heads", "6"]
    run = partial(prune, model, tmp_path / "out", *given)

    def old(*args: Any, **options: Any) -> NoReturn:
        raise ImportError("Using the `Trainer` requires `accelerate>=99.0`.")

    with monkeypatch.context() as patched:
        patched.setattr("transformers.TrainingArguments", old)
        refused(capsys, 2, "another release of accelerate", "accelerate>=99.0", run=run)
    monkeypatch.setattr("cahp_opt.torch.recovery.finetuning.find_spec", lambda name: None)
    refused(capsys, 2, "cahp-opt[finetune]", run=run)
