"""The dense model: all-MiniLM-L6-v2 as a classifier, fine-tuned once and kept.

python benchmarks/accuracy/training.py --data ../shared/data/sick
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.accuracy.data import Data, read
from cahp_opt.demo import SHA256, demo_model
from cahp_opt.files.store import digest
from cahp_opt.runs.texts import Example
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

    @staticmethod
    def suiting(data: Data) -> Recipe:
        """More epochs where there are no phrases."""
        return Recipe() if data.phrases else Recipe(epochs=5)


def fine_tuned(data: Data, recipe: Recipe, cache: Path) -> Path:
    """The folder of the fine-tuned model; it is trained if it is not in the cache."""
    folder = cache / "models" / f"{data.name}-{digest((recipe, data.digest, SHA256))}"
    done = folder / "recipe.json"
    if done.exists():
        return folder
    base = demo_model()
    torch.manual_seed(recipe.seed)
    classes = len(data.labels)
    load: Any = transformers.BertForSequenceClassification
    model = load.from_pretrained(base, num_labels=classes)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    log = train(model, tokenizer, data, recipe)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done.write_text(json.dumps({"recipe": asdict(recipe), "epochs": log}, indent=1) + "\n")
    return folder


def train(model: Any, tokenizer: Any, data: Data, recipe: Recipe) -> list[dict[str, float]]:
    """Fine-tune the model in place, and leave it as it was after its best epoch."""
    optimizer = torch.optim.AdamW(groups(model, recipe), betas=(0.9, 0.98))
    epochs = [list(order(model, tokenizer, data, recipe, e)) for e in range(recipe.epochs)]
    steps = sum(map(len, epochs))
    warm = max(1, math.ceil(0.06 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm))
    )
    judge = encode(data.dev, tokenizer, model, batch_size=128, max_length=recipe.longest)
    best, kept, log = -1.0, dict[str, Tensor](), list[dict[str, float]]()
    for number, batches in enumerate(epochs):
        model.train()
        started, total = time.perf_counter(), 0.0
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
        found = accuracy(model, judge)
        log.append(
            {
                "loss": total / len(batches),
                "dev": found,
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        print(f"epoch {number}: {log[-1]}", flush=True)
        if found > best:
            best = found
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return log


def order(
    model: nn.Module, tokenizer: Any, data: Data, recipe: Recipe, epoch: int
) -> Iterator[dict[str, Tensor]]:
    """The batches of one epoch, phrases and whole examples mixed."""
    draw = random.Random(1000 * recipe.seed + epoch)
    batches = list[dict[str, Tensor]]()
    parts: list[tuple[list[Example], int]] = [
        (draw.sample(data.train, len(data.train)), recipe.batch)
    ]
    if data.phrases and epoch < 2:
        long = [e for e in data.phrases if len(e.text.split()) >= recipe.shortest]
        parts.append((draw.sample(long, min(len(long), recipe.phrases)), 2 * recipe.batch))
    for examples, size in parts:
        batches += encode(
            examples, tokenizer, model, batch_size=size, max_length=recipe.longest, seed=epoch
        )
    draw.shuffle(batches)
    yield from batches


def groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """The weights with their rates: lower layers learn more slowly, and only matrices decay."""
    layers = model.config.num_hidden_layers
    found = dict[tuple[float, float], list[Tensor]]()
    for name, weight in model.named_parameters():
        if "classifier" in name or "pooler" in name:
            rate = recipe.head_rate
        elif ".layer." in name:
            above = layers - 1 - int(name.split(".layer.")[1].split(".")[0])
            rate = recipe.rate * recipe.decay**above
        else:
            rate = recipe.rate * recipe.decay**layers
        found.setdefault((rate, 0.01 if weight.ndim > 1 else 0.0), []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": shrink}
        for (rate, shrink), weights in found.items()
    ]


def accuracy(model: Any, batches: list[dict[str, Tensor]]) -> float:
    """The share of examples with the right class."""
    with torch.inference_mode():
        right = [model(**inputs_of(b)).logits.argmax(-1) == b["labels"] for b in batches]
    return float(torch.cat(right).double().mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--data", required=True, help="a folder of tables, or a name on the hub")
    options.add_argument("--cache", type=Path, default=CACHE)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    data = read(given.data)
    recipe = Recipe.suiting(data)
    folder = fine_tuned(data, recipe, given.cache)
    load: Any = transformers.BertForSequenceClassification
    model = load.from_pretrained(folder).float().eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    for part, examples in (("dev", data.dev), ("test", data.test)):
        judge = encode(examples, tokenizer, model, batch_size=128, max_length=recipe.longest)
        print(f"{part}: {accuracy(model, judge):.4f}")
    print(folder)


if __name__ == "__main__":
    main()
