"""Tiny random models of every supported family, and small batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from cahp_opt.heads import Bools, HeadSpace

VOCABULARY = 48
HIDDEN = 32
HEADS = 4
LAYERS = 3


@dataclass(frozen=True)
class Family:
    """A factory of one tiny model.

    Args:
        name: for test ids.
        config: builds the configuration; keywords override its fields.
        bare: the class without a head.
        headed: a class with a head: a classifier, or a causal language model.
        causal: whether ``headed`` is a causal language model.
    """

    name: str
    config: Callable[..., Any]
    bare: str
    headed: str
    causal: bool = False

    def build(self, *, bare: bool = False, seed: int = 0, **fields: Any) -> nn.Module:
        """A model in evaluation mode with random weights, no dropout, and biases that are not zero."""
        config = self.config(**fields)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = getattr(transformers, self.bare if bare else self.headed)(config)
            stir(model)
        return model.eval()


def stir(model: nn.Module) -> None:
    """Replace the small initial weights by ones that make every head matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def _config(cls: str, **defaults: Any) -> Callable[..., Any]:
    def config(**fields: Any) -> Any:
        return getattr(transformers, cls)(**{"vocab_size": VOCABULARY, **defaults, **fields})

    return config


def _bert_like(cls: str, **more: Any) -> Callable[..., Any]:
    return _config(
        cls,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=40,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
        **more,
    )


def _llama_like(cls: str, kv_heads: int) -> Callable[..., Any]:
    return _config(
        cls,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2 * HEADS,
        num_key_value_heads=kv_heads,
        head_dim=HIDDEN // (2 * HEADS),
        intermediate_size=40,
        max_position_embeddings=40,
        bos_token_id=0,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=None,
    )


_DISTILBERT = _config(
    "DistilBertConfig",
    dim=HIDDEN,
    n_layers=LAYERS,
    n_heads=HEADS,
    hidden_dim=40,
    max_position_embeddings=40,
    dropout=0.0,
    attention_dropout=0.0,
    seq_classif_dropout=0.0,
    num_labels=3,
)
_GPT2 = _config(
    "GPT2Config",
    n_embd=HIDDEN,
    n_layer=LAYERS,
    n_head=HEADS,
    n_positions=40,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=0,
    eos_token_id=VOCABULARY - 1,
)
_GPT_NEOX = _config(
    "GPTNeoXConfig",
    hidden_size=HIDDEN,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=40,
    max_position_embeddings=40,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    bos_token_id=0,
    eos_token_id=VOCABULARY - 1,
)


def _encoder(name: str, stem: str, config: Callable[..., Any]) -> Family:
    return Family(name, config, f"{stem}Model", f"{stem}ForSequenceClassification")


def _decoder(name: str, stem: str, config: Callable[..., Any], headed: str = "") -> Family:
    return Family(name, config, f"{stem}Model", headed or f"{stem}ForCausalLM", causal=True)


BERT = _encoder("bert", "Bert", _bert_like("BertConfig"))
ROBERTA = _encoder("roberta", "Roberta", _bert_like("RobertaConfig"))
ELECTRA = _encoder("electra", "Electra", _bert_like("ElectraConfig", embedding_size=16))
MPNET = _encoder("mpnet", "MPNet", _bert_like("MPNetConfig"))
DISTILBERT = _encoder("distilbert", "DistilBert", _DISTILBERT)
GPT2 = _decoder("gpt2", "GPT2", _GPT2, "GPT2LMHeadModel")
LLAMA_GQA = _decoder("llama-gqa", "Llama", _llama_like("LlamaConfig", HEADS))
LLAMA_MHA = _decoder("llama-mha", "Llama", _llama_like("LlamaConfig", 2 * HEADS))
MISTRAL = _decoder("mistral", "Mistral", _llama_like("MistralConfig", HEADS))
QWEN2 = _decoder("qwen2", "Qwen2", _llama_like("Qwen2Config", HEADS))
QWEN3 = _decoder("qwen3", "Qwen3", _llama_like("Qwen3Config", HEADS))
GPT_NEOX = _decoder("gpt-neox", "GPTNeoX", _GPT_NEOX)

FAMILIES = (
    BERT,
    ROBERTA,
    ELECTRA,
    MPNET,
    DISTILBERT,
    GPT2,
    LLAMA_GQA,
    LLAMA_MHA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GPT_NEOX,
)
"""One of every supported family."""


def batch(
    *, size: int = 3, length: int = 7, padded: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """Random token ids ``[size, length]``; with ``padded`` all rows but the first end in padding."""
    generator = torch.Generator().manual_seed(seed)
    # Ids 0 and 1 are padding for some families, and position ids of RoBERTa skip them.
    ids = torch.randint(2, VOCABULARY - 1, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(1, size):
            mask[row, length - 1 - row % (length - 2) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def uneven(space: HeadSpace, *, empty: int | None = None) -> Bools:
    """A keep-set with one unit in the first block, some in the second, all but one in the third."""
    kept = np.zeros(space.n, dtype=bool)
    first, second, third = space.slices
    kept[first.start + 2] = True
    kept[[second.start + 1, second.start + 3]] = True
    kept[third] = True
    kept[third.start + 1] = False
    if empty is not None:
        kept[space.slices[empty]] = False
    return kept


def run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The first output at real tokens."""
    with torch.no_grad():
        output: Tensor = model(**batch)[0]
    return output[batch["attention_mask"] != 0] if output.ndim == 3 else output
