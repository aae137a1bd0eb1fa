"""The dense model: all-MiniLM-L6-v2 as a classifier, fine-tuned once and kept."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.accuracy.data import Data
from cahp_opt.demo import SHA256, demo_model
from cahp_opt.files.store import digest
from cahp_opt.torch.running.batches import inputs_of
from cahp_opt.torch.texts.encoding import encode

CACHE = Path(__file__).parent / "cache"


@dataclass(frozen=True)
class Recipe:
    """How it is fine-tuned; the epoch that is best on the dev set is kept.

    Args:
        epochs: over the training examples.
        rate: learning rate of the last layer, by AdamW.
        head_rate: of the pooler and the classifier.
        decay: factor of the rate from a layer to the one below.
        phrases: phrases added to each of the first two epochs, where the data has them.
        shortest: words of the shortest phrase.
        batch: examples per step; twice as many phrases.
        longest: tokens per example.
        seed: of dropout and order.
    """

    epochs: int = 3
    rate: float = 1.2e-4
    head_rate: float = 5e-4
    decay: float = 0.9
    phrases: int = 24_000
    shortest: int = 3
    batch: int = 32
    longest: int = 64
    seed: int = 0


def fine_tuned(data: Data, cache: Path) -> Path:
    """The folder of the fine-tuned model; it is trained if it is not in the cache."""
    recipe = Recipe(epochs=3 if data.phrases else 5)
    folder = cache / "models" / f"{data.name}-{digest((recipe, data.digest, SHA256))}"
    done = folder / "recipe.json"
    if done.exists():
        return folder
    base = demo_model()
    torch.manual_seed(recipe.seed)
    load: Any = transformers.BertForSequenceClassification
    model = load.from_pretrained(base, num_labels=len({e.label for e in data.train}))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    log = train(model, tokenizer, data, recipe)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done.write_text(json.dumps({"recipe": asdict(recipe), "epochs": log}, indent=1) + "\n")
    return folder


def train(model: Any, tokenizer: Any, data: Data, recipe: Recipe) -> list[dict[str, float]]:
    """Fine-tune the model in place, and leave it as it was after its best epoch."""
    optimizer = torch.optim.AdamW(groups(model, recipe), betas=(0.9, 0.98))
    epochs = [order(model, tokenizer, data, recipe, e) for e in range(recipe.epochs)]
    steps = sum(map(len, epochs))
    warm = max(1, math.ceil(0.06 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm))
    )
    judge = encode(data.dev, tokenizer, model, batch_size=128, max_length=recipe.longest)
    best, kept, log = -1.0, dict[str, Tensor](), list[dict[str, float]]()
    for number, batches in enumerate(epochs):
        model.train()
        total = 0.0
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total += float(loss.detach())
        model.eval()
        log.append({"loss": total / len(batches), "dev": accuracy(model, judge)})
        print(f"epoch {number}: {log[-1]}", flush=True)
        if log[-1]["dev"] > best:
            best = log[-1]["dev"]
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return log


def order(
    model: nn.Module, tokenizer: Any, data: Data, recipe: Recipe, epoch: int
) -> list[dict[str, Tensor]]:
    """The batches of one epoch, phrases and whole examples mixed."""
    draw = random.Random(1000 * recipe.seed + epoch)
    parts = [(draw.sample(data.train, len(data.train)), recipe.batch)]
    if data.phrases and epoch < 2:
        long = [e for e in data.phrases if len(e.text.split()) >= recipe.shortest]
        parts.append((draw.sample(long, min(len(long), recipe.phrases)), 2 * recipe.batch))
    batches = list[dict[str, Tensor]]()
    for examples, size in parts:
        batches += encode(
            examples, tokenizer, model, batch_size=size, max_length=recipe.longest, seed=epoch
        )
    draw.shuffle(batches)
    return batches


def groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """The weights with their rates: lower layers learn more slowly, and only matrices decay."""
    layers = model.config.num_hidden_layers
    found = list[dict[str, Any]]()
    for name, weight in model.named_parameters():
        if "classifier" in name or "pooler" in name:
            rate = recipe.head_rate
        else:
            above = layers
            if ".layer." in name:
                above = layers - 1 - int(name.split(".layer.")[1].split(".")[0])
            rate = recipe.rate * recipe.decay**above
        shrink = 0.01 if weight.ndim > 1 else 0.0
        found.append({"params": [weight], "lr": rate, "weight_decay": shrink})
    return found


def accuracy(model: Any, batches: list[dict[str, Tensor]]) -> float:
    """The share of examples with the right class."""
    with torch.inference_mode():
        right = [model(**inputs_of(b)).logits.argmax(-1) == b["labels"] for b in batches]
    return float(torch.cat(right).double().mean())
