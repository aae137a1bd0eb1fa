"""Train a small decoder on a folder of books, for studies that judge by perplexity.

    python benchmarks/decoders/train.py --books ../shared/data/books --output small-llama
    cahp study small-llama --text ../shared/data/books/train.txt --test-data ../shared/data/books/test.txt

The folder holds ``train.txt`` and ``test.txt``, a paragraph per line. The tokenizer (byte pairs) and the weights come
from ``train.txt`` alone. ``llama`` has grouped-query attention, 8 query heads in 4 groups; ``gpt2`` has 8 heads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

END = "<|endoftext|>"
LONGEST = 128
WIDTH, LAYERS, HEADS = 256, 4, 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--books", type=Path, required=True, help="holds train.txt and test.txt")
    options.add_argument("--output", type=Path, required=True, help="folder of the model to write")
    options.add_argument("--kind", choices=("llama", "gpt2"), default="llama")
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--batch", type=int, default=16, help=f"windows of {LONGEST} tokens")
    options.add_argument("--tokens", type=int, default=4096, help="size of the vocabulary")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    tokenizer = byte_pairs(given.books / "train.txt", given.tokens)
    train, test = (ids_of(tokenizer, given.books / f"{name}.txt") for name in ("train", "test"))
    model = llama(given.tokens) if given.kind == "llama" else gpt2(given.tokens)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{given.kind}: {weights:,} weights; {len(train):,} tokens to train on", flush=True)
    learn(model, train, given.steps, given.batch)
    print(f"perplexity per token on test.txt: {perplexity(model, test):.2f}")
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)


def byte_pairs(texts: Path, size: int) -> Any:
    """A tokenizer of byte pairs."""
    pairs = ByteLevelBPETokenizer()
    pairs.train([str(texts)], vocab_size=size, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs._tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=LONGEST,
    )


def ids_of(tokenizer: Any, texts: Path) -> Tensor:
    """All lines as one row of tokens, each closed by the token of the end, ``[tokens]``."""
    lines = texts.read_text(encoding="utf-8").splitlines()
    end = tokenizer.eos_token_id
    return torch.tensor([i for ids in tokenizer(lines)["input_ids"] for i in (*ids, end)])


def llama(tokens: int) -> Any:
    """A decoder with grouped-query attention."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens,
            hidden_size=WIDTH,
            intermediate_size=704,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            max_position_embeddings=LONGEST,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def gpt2(tokens: int) -> Any:
    """A decoder with a head of its own for every query."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokens,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=LONGEST,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def learn(model: Any, ids: Tensor, steps: int, batch: int) -> None:
    """Train on random windows."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    began = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        starts = torch.randint(len(ids) - LONGEST, (batch, 1))
        window = ids[starts + torch.arange(LONGEST)]
        loss = model(input_ids=window, labels=window).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            print(
                f"step {step} of {steps}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    model.eval()


@torch.no_grad()
def perplexity(model: Any, ids: Tensor) -> float:
    """Per token, over windows one after another."""
    windows = ids[: len(ids) // LONGEST * LONGEST].reshape(-1, LONGEST)
    losses = [model(input_ids=part, labels=part).loss * len(part) for part in windows.split(32)]
    return float(torch.stack(losses).sum().div(len(windows)).exp())


if __name__ == "__main__":
    main()
