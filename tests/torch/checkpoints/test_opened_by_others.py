"""Saved folders in the tools that evaluate and train models: lm-eval, PEFT, TRL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from stand_ins import byte_tokenizer
from tiny_models import named, sliced
from torch import nn

from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained

pytestmark = [
    pytest.mark.usefixtures("modules_of_folders"),
    # Tools announce the end of each other's interfaces; that is not ours to fail on.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

QUESTIONS: list[dict[str, Any]] = [
    {"question": f"Of {n} and {n + 3} the larger is", "choices": [str(n), str(n + 3)], "answer": 1}
    for n in range(12)
]
TASK = """
task: larger
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""


def reader() -> Any:
    """A tokenizer with an end of texts, as those of decoders have."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    return tokenizer


def saved(name: str, folder: Path) -> nn.Module:
    """A tiny decoder, pruned in both kinds, that reads bytes; and its folder."""
    tokenizer = reader()
    longest = "n_positions" if name == "gpt2" else "max_position_embeddings"
    fields: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, longest: 128}
    small: nn.Module = sliced(named(name), neurons=True, **fields)
    save_pretrained(small, folder, tokenizer=tokenizer)
    return small


def share_right(model: Any) -> float:
    """The share of the questions of which the right answer is the likelier one."""
    tokenizer, right = reader(), 0
    for example in QUESTIONS:
        scores = list[float]()
        for choice in example["choices"]:
            before = tokenizer(example["question"], return_tensors="pt").input_ids
            whole = tokenizer(f"{example['question']} {choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                told = model(whole[:, :-1]).logits.log_softmax(-1)[0]
            new = range(before.shape[1], whole.shape[1])
            scores.append(sum(float(told[place - 1, whole[0, place]]) for place in new))
        right += int(max(range(2), key=scores.__getitem__) == example["answer"])
    return right / len(QUESTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa"])
def test_lm_eval_evaluates_a_folder(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    saved(name, tmp_path / "pruned")
    rows = "\n".join(json.dumps(example) for example in QUESTIONS)
    (tmp_path / "questions.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    task = TASK.format(file=tmp_path / "questions.jsonl")
    (tmp_path / "tasks" / "larger.yaml").write_text(task, encoding="utf-8")
    options = {
        "model": "hf",
        "model_args": f"pretrained={tmp_path / 'pruned'},trust_remote_code=True",
        "tasks": "larger",
        "include_path": str(tmp_path / "tasks"),
        "device": "cpu",
        "output_path": str(tmp_path / "found"),
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    done = subprocess.run([sys.executable, "-m", "lm_eval", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (tmp_path / "found").rglob("results_*.json")
    told = json.loads(found.read_text(encoding="utf-8"))["results"]["larger"]["acc,none"]
    assert told == pytest.approx(share_right(from_pretrained(tmp_path / "pruned")))


def test_adapters_are_trained_on_a_folder(tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft")
    small = saved("llama-gqa", tmp_path / "pruned")
    loader: Any = transformers.AutoModelForCausalLM
    base = loader.from_pretrained(str(tmp_path / "pruned"), trust_remote_code=True)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    batch = tiny.batch()
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    tuned(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    tuned(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    tuned.save_pretrained(str(tmp_path / "adapter"))
    base = loader.from_pretrained(str(tmp_path / "pruned"), trust_remote_code=True)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        found, expected = again(**batch).logits, tuned.eval()(**batch).logits
        assert torch.equal(found, expected)
        assert not torch.allclose(found, small(**batch).logits)


@pytest.mark.slow
def test_trl_trains_a_folder(tmp_path: Path) -> None:
    trl: Any = pytest.importorskip("trl")
    datasets: Any = pytest.importorskip("datasets")
    small = saved("llama-gqa", tmp_path / "pruned")
    texts = datasets.Dataset.from_list([{"text": f"{n} and {n + 1}"} for n in range(8)])
    options = trl.SFTConfig(
        output_dir=str(tmp_path / "trained"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    loader: Any = transformers.AutoModelForCausalLM
    trainer = trl.SFTTrainer(
        model=loader.from_pretrained(str(tmp_path / "pruned"), trust_remote_code=True),
        args=options,
        train_dataset=texts,
        processing_class=reader(),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "trained" / "last"))
    loaded = from_pretrained(tmp_path / "trained" / "last")
    pairs = list(zip(loaded.parameters(), small.parameters(), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)
