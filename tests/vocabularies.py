"""Small tokenizers of the kinds that llama.cpp knows, trained on a few texts."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cahp_opt.demo import demo_texts
from cahp_opt.torch.export.gguf_vocabulary import _SPLITS

SIZE = 384
"""Tokens that each of them has."""

_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def byte_level(split: str = "gpt-2") -> Any:
    """Byte pairs, with the texts split in the way that llama.cpp calls ``split``."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    if split == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        (pattern,) = (regex for regex, name in _SPLITS.items() if name == split)
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, inner])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, [*_SPECIAL.values()], initial_alphabet=alphabet)


def sentence_piece() -> Any:
    """Byte pairs as SentencePiece makes them for Llama 2: marked spaces, and bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return _trained(tokenizer, [*_SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))])


def _trained(tokenizer: Tokenizer, first: list[str], **options: Any) -> Any:
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=first, show_progress=False, **options
    )
    tokenizer.train_from_iterator([example.text for example in demo_texts()[:200]], trainer)
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, **_SPECIAL)
