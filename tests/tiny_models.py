"""Tiny random models of every supported architecture, and small batches for them.

An entry of :data:`BUILDS` names the classes of transformers and what is not the usual: every size that a
configuration knows comes from :data:`SIZES`, every dropout is zero, and every token id lies in the
vocabulary. A new architecture is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from cahp_opt.arrays import Bools
from cahp_opt.space import HeadSpace
from cahp_opt.torch import Prunable, explicit_attention, find_prunable, slice_heads

VOCABULARY = 48
HIDDEN = 32
HEADS = 4
LAYERS = 3
INNER = 40
PIXELS = 16
TICKS = 12

_NAMES = (
    (HIDDEN, "hidden_size d_model dim n_embd word_embed_proj_dim projection_dim"),
    (LAYERS, "num_hidden_layers n_layer n_layers"),
    (LAYERS - 1, "encoder_layers decoder_layers num_layers num_decoder_layers"),
    (HEADS, "num_attention_heads num_key_value_heads n_head n_heads num_heads"),
    (HEADS, "encoder_attention_heads decoder_attention_heads"),
    (HIDDEN // HEADS, "d_kv num_mel_bins"),
    (HIDDEN // HEADS // 2, "head_dim"),
    (INNER, "intermediate_size ffn_dim hidden_dim n_inner d_ff encoder_ffn_dim decoder_ffn_dim"),
    (40, "max_position_embeddings n_positions max_target_positions"),
    (VOCABULARY, "vocab_size decoder_vocab_size"),
    (PIXELS, "image_size"),
    (PIXELS // 4, "patch_size"),
    (TICKS // 2, "max_source_positions"),
)
SIZES = {name: size for size, names in _NAMES for name in names.split()}
"""The usual sizes; a configuration gets those whose names it knows."""


class Inputs(Protocol):
    """Makes a batch; without padding there is no mask at all."""

    def __call__(self, *, size: int, length: int, padded: bool, seed: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Family:
    """A factory of one tiny model.

    Args:
        name: for test ids and the table of supported architectures.
        stem: what the names of the configuration and of the bare class begin with.
        headed: a class with a head: a classifier, or a language model.
        units: the units of every attention block that is to be found.
        inputs: makes its batches.
        fields: fields of the configuration that are not the usual.
        bare: the class without a head; ``Model`` after the stem, unless given.
        generates: whether ``headed`` has a decoder that generates tokens.
        slots: how many query heads share a key/value head.
        make: builds a model that is not of transformers.
        inner: the neurons of every feed-forward part that is to be found.
        experts: whether its feed-forward parts are experts, which are left alone.
    """

    name: str
    stem: str
    headed: str
    units: Sequence[int]
    inputs: Inputs
    fields: Mapping[str, Any] = field(default_factory=dict)
    bare: str = ""
    generates: bool = False
    slots: int = 1
    make: Callable[[], nn.Module] | None = None
    inner: Sequence[int] = (INNER,) * LAYERS
    experts: bool = False

    def config(self, **fields: Any) -> Any:
        """The configuration; keywords override its fields."""
        return configure(f"{self.stem}Config", **{**self.fields, **fields})

    def build(self, *, bare: bool = False, seed: int = 0, **fields: Any) -> Any:
        """A model in evaluation mode with random weights, no dropout, and biases that are not zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.make:
                model = self.make()
            else:
                cls = (self.bare or f"{self.stem}Model") if bare else self.headed
                model = of_transformers(cls)(self.config(**fields))
            explicit_attention(model)
            stir(model)
        return model.eval()

    def batch(
        self, *, size: int = 3, length: int = 7, padded: bool = True, seed: int = 0
    ) -> dict[str, Tensor]:
        """A batch of random inputs."""
        return self.inputs(size=size, length=length, padded=padded, seed=seed)

    def prompt(self, *, padded: bool = True) -> dict[str, Tensor]:
        """What ``generate`` starts from: encoders are padded on the right, decoders on the left."""
        batch = self.batch(padded=padded)
        prompt = {key: value for key, value in batch.items() if not key.startswith("decoder_")}
        if len(prompt) < len(batch):
            return prompt
        left = ("input_ids", "attention_mask")
        return {key: value.flip(1) if key in left else value for key, value in prompt.items()}

    @property
    def pads(self) -> bool:
        """Whether a batch can have padding."""
        return self.batch(padded=True).keys() != self.batch(padded=False).keys()


@dataclass(frozen=True)
class Part:
    """The configuration of one tower, as a field of the whole model's."""

    cls: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def configure(cls: str, **fields: Any) -> Any:
    """A tiny configuration of a class of transformers."""
    make = of_transformers(cls)
    known = make().to_dict()
    usual: dict[str, Any] = {name: size for name, size in SIZES.items() if name in known}
    for name, value in known.items():
        if isinstance(value, float) and "drop" in name:
            usual[name] = 0.0
        elif name == "eos_token_id":
            usual[name] = VOCABULARY - 1
        elif isinstance(value, int) and name.endswith("token_id") and value >= VOCABULARY:
            usual[name] = 0
        elif name in ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"):
            usual[name] = None
    for name, value in fields.items():
        if isinstance(value, Part):
            fields[name] = configure(value.cls, **value.fields).to_dict()
    return make(**{**usual, "num_labels": 3, **fields})


def of_transformers(name: str) -> Any:
    """A class of transformers; the test is skipped where this version does not have it."""
    try:
        return getattr(transformers, name)
    except AttributeError:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")


def stir(model: nn.Module) -> None:
    """Replace the small initial weights by ones that make every head matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # positions that follow a formula, which loading computes anew
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)


# --- batches -------------------------------------------------------------------------------------


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


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))


def tokens(
    *, size: int, length: int, padded: bool, seed: int, prefix: str = ""
) -> dict[str, Tensor]:
    """Token ids, with a mask if padded."""
    made = batch(size=size, length=length, padded=padded, seed=seed)
    return {prefix + k: v for k, v in made.items() if padded or k != "attention_mask"}


def two_texts(*, size: int, length: int, padded: bool, seed: int) -> dict[str, Tensor]:
    """Token ids for an encoder and, of another length, for its decoder."""
    decoder = tokens(size=size, length=length - 2, padded=padded, seed=seed + 9, prefix="decoder_")
    return {**tokens(size=size, length=length, padded=padded, seed=seed), **decoder}


def read_states(*, size: int, length: int, padded: bool, seed: int) -> dict[str, Tensor]:
    """Token ids for a decoder that reads the hidden states of some encoder."""
    made = tokens(size=size, length=length, padded=padded, seed=seed)
    made["encoder_hidden_states"] = _random(seed, size, length - 2, HIDDEN)
    return made


def image(*, size: int, length: int, padded: bool, seed: int) -> dict[str, Tensor]:
    """Pixels; images have no padding."""
    return {"pixel_values": _random(seed, size, 3, PIXELS, PIXELS)}


def bare_image(*, size: int, length: int, padded: bool, seed: int) -> dict[str, Tensor]:
    """Pixels under the name that timm's models give them."""
    return {"x": _random(seed, size, 3, PIXELS, PIXELS)}


def text_and_image(*, size: int, length: int, padded: bool, seed: int) -> dict[str, Tensor]:
    """Texts and images; these text models look for the last token by the id that fills."""
    made = tokens(size=size, length=length, padded=padded, seed=seed)
    if padded:
        made["input_ids"] = made["input_ids"].masked_fill(made["attention_mask"] == 0, 1)
    return {**made, **image(size=size, length=length, padded=padded, seed=seed)}


def sound(*, size: int, length: int, padded: bool, seed: int) -> dict[str, Tensor]:
    """A spectrogram, and token ids for the decoder."""
    made = tokens(size=size, length=length, padded=padded, seed=seed, prefix="decoder_")
    return {"input_features": _random(seed, size, SIZES["num_mel_bins"], TICKS), **made}


def vectors(*, size: int, length: int, padded: bool, seed: int) -> dict[str, Tensor]:
    """Hidden states for a bare stack of torch's layers."""
    made = {"src": _random(seed, size, length, HIDDEN)}
    mask = batch(size=size, length=length, padded=True, seed=seed)["attention_mask"]
    return {**made, "src_key_padding_mask": mask == 0} if padded else made


# --- models that are not of transformers ------------------------------------------------------------


class TimmAttention(nn.Module):
    """Attention as timm writes it: one fused layer, heads counted in the module."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attn_dim = dim
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        size, length, _ = x.shape
        qkv = self.qkv(x).reshape(size, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = self.norm(x.transpose(1, 2).reshape(size, length, self.attn_dim))
        out: Tensor = self.proj_drop(self.proj(x))
        return out


class TimmBlock(nn.Module):
    """A pre-norm layer."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = TimmAttention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, INNER), nn.GELU(), nn.Linear(INNER, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TimmViT(nn.Module):
    """A vision transformer that returns a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, HIDDEN, PIXELS // 4, stride=PIXELS // 4)
        self.blocks = nn.Sequential(*(TimmBlock(HIDDEN, HEADS) for _ in range(LAYERS)))
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.blocks(patches).mean(1))
        return out


def torch_encoder() -> nn.Module:
    """A stack of torch's own encoder layers."""
    layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, INNER, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


# --- the table ------------------------------------------------------------------------------------

EACH = (HEADS,) * LAYERS
TWO_TOWERS = (HEADS,) * 6
"""Two layers in an encoder, and two with two blocks each in a decoder, or three in either tower."""


def _encoder(name: str, stem: str, units: Sequence[int] = EACH, **fields: Any) -> Family:
    headed = f"{stem}ForSequenceClassification"
    return Family(name, stem, headed, units, tokens, fields, inner=(INNER,) * len(units))


def _decoder(name: str, stem: str, headed: str = "", bare: str = "", **fields: Any) -> Family:
    headed = headed or f"{stem}ForCausalLM"
    return Family(name, stem, headed, EACH, tokens, fields, bare, generates=True)


def _grouped(name: str, stem: str, headed: str = "", bare: str = "", **fields: Any) -> Family:
    """Eight query heads that share four key/value heads."""
    family = _decoder(name, stem, headed, bare, num_attention_heads=2 * HEADS, **fields)
    return replace(family, slots=2)


def _wide(family: Family) -> Family:
    """Four times as many neurons as the stream is wide, whatever the configuration says."""
    return replace(family, inner=(4 * HIDDEN,) * LAYERS)


def _reader(name: str, stem: str, headed: str, generates: bool, **fields: Any) -> Family:
    fields = {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": 2, **fields}
    family = Family(name, stem, headed, (HEADS,) * 4, read_states, fields, generates=generates)
    return replace(family, inner=(INNER,) * 2)


def _translator(name: str, stem: str, headed: str, inputs: Inputs = two_texts, **f: Any) -> Family:
    fields = {"decoder_start_token_id": 1, **f}
    family = Family(name, stem, headed, TWO_TOWERS, inputs, fields, generates=True)
    return replace(family, inner=(INNER,) * 4)


def _vision(name: str, stem: str, units: Sequence[int] = EACH, **fields: Any) -> Family:
    return Family(name, stem, f"{stem}ForImageClassification", units, image, fields)


def _contrastive(name: str, stem: str, units: Sequence[int], **text: Any) -> Family:
    parts = {
        "text_config": Part(f"{stem}TextConfig", text),
        "vision_config": Part(f"{stem}VisionConfig"),
    }
    inner = (INNER,) * len(units)
    return Family(name, stem, f"{stem}Model", units, text_and_image, parts, inner=inner)


_NEAR_AND_FAR = ["sliding_attention", "full_attention", "sliding_attention"]

BERT = _encoder("bert", "Bert")
ROBERTA = _encoder("roberta", "Roberta")
ELECTRA = _encoder("electra", "Electra", embedding_size=16)
MPNET = _encoder("mpnet", "MPNet")
DISTILBERT = _encoder("distilbert", "DistilBert")
GPT2 = _decoder("gpt2", "GPT2", "GPT2LMHeadModel")
LLAMA_GQA = _grouped("llama-gqa", "Llama")
LLAMA_MHA = replace(
    _grouped("llama-mha", "Llama", num_key_value_heads=2 * HEADS), slots=1, units=(8, 8, 8)
)
MISTRAL = _grouped("mistral", "Mistral", sliding_window=6)
QWEN2 = _grouped("qwen2", "Qwen2")
QWEN3 = _grouped("qwen3", "Qwen3")
GPT_NEOX = _decoder("gpt-neox", "GPTNeoX")

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
"""One of every layout, for tests that need not run on every architecture."""

_BIASED: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 4,
}

BUILDS = (
    *FAMILIES,
    _encoder("xlm-r", "XLMRoberta"),
    # The stock model's generate wants a cache of another kind than the one it makes.
    _reader("bert-cross", "Bert", "BertLMHeadModel", generates=False),
    _encoder("albert", "Albert", (HEADS,), embedding_size=16),
    _encoder("albert-groups", "Albert", (HEADS, HEADS), embedding_size=16, num_hidden_groups=2),
    _encoder("deberta-v2", "DebertaV2", **_BIASED),
    _encoder("deberta-v3", "DebertaV2", share_att_key=True, **_BIASED),
    _encoder("modernbert", "ModernBert", local_attention=4, global_attn_every_n_layers=2),
    _vision("vit", "ViT"),
    _vision("deit", "DeiT"),
    _vision("beit", "Beit", use_relative_position_bias=True),
    _vision("beit-shared", "Beit", use_shared_relative_position_bias=True),
    replace(
        _vision(
            "swin", "Swin", (2, 2, 4), embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=2
        ),
        inner=(64, 64, 128),
    ),
    _contrastive("clip", "CLIP", TWO_TOWERS, eos_token_id=2),
    _contrastive("siglip", "Siglip", (*TWO_TOWERS, HEADS)),
    _translator("bart", "Bart", "BartForConditionalGeneration"),
    _translator("marian", "Marian", "MarianMTModel"),
    _translator("t5", "T5", "T5ForConditionalGeneration"),
    _translator("umt5", "UMT5", "UMT5ForConditionalGeneration"),
    _translator("whisper", "Whisper", "WhisperForConditionalGeneration", sound),
    _decoder("opt", "OPT"),
    _wide(_decoder("bloom", "Bloom")),
    _wide(_grouped("falcon", "Falcon", new_decoder_architecture=True, num_kv_heads=HEADS)),
    _wide(_decoder("falcon-mqa", "Falcon", multi_query=True)),
    _reader("gpt2-cross", "GPT2", "GPT2LMHeadModel", generates=True),
    _grouped("phi3", "Phi3"),
    _grouped("gemma2", "Gemma2", sliding_window=6),
    _grouped(
        "gemma3",
        "Gemma3Text",
        "Gemma3ForCausalLM",
        "Gemma3TextModel",
        sliding_window=6,
        layer_types=_NEAR_AND_FAR,
    ),
    replace(
        _grouped(
            "gpt-oss",
            "GptOss",
            sliding_window=6,
            num_local_experts=2,
            num_experts_per_tok=1,
            experts_implementation="eager",  # the other kernels have no float64
        ),
        inner=(),
        experts=True,
    ),
    Family("torch-encoder", "", "", EACH, vectors, make=torch_encoder),
    Family("timm-vit", "", "", EACH, bare_image, make=TimmViT),
)
"""Every architecture of the support table."""

_BY_NAME = {family.name: family for family in BUILDS}


def named(name: str) -> Family:
    """The family of this name."""
    return _BY_NAME[name]


# --- keep-sets and runs ---------------------------------------------------------------------------


def uneven(space: HeadSpace, *, empty: int | None = None, seed: int = 0) -> Bools:
    """A random keep-set: one unit of the first block, all but one of the last, some of the others.

    The last unit of every block is kept, so that taking the first units instead is always wrong.

    Args:
        space: the units.
        empty: a block that keeps nothing.
        seed: of the random choice.
    """
    rng = np.random.default_rng(seed)
    kept = np.zeros(space.n, dtype=bool)
    for index, (block, where) in enumerate(zip(space.blocks, space.slices, strict=True)):
        most = max(block.units - 1, 1)
        count = 1 if index == 0 else most if where.stop == space.n else rng.integers(1, most + 1)
        kept[where.start + rng.permutation(block.units - 1)[: count - 1]] = True
        kept[where.stop - 1] = True
    if empty is not None:
        kept[space.slices[empty]] = False
    return kept


def in_random_groups(prunable: Prunable, *, seed: int = 0) -> Prunable:
    """The same blocks with any neurons put into one group."""
    rng = np.random.default_rng(seed)
    orders = [b.order and tuple(rng.permutation(b.order).tolist()) for b in prunable.space.blocks]
    pairs = zip(prunable.space.blocks, orders, strict=True)
    return prunable.grouped(HeadSpace(tuple(b._replace(order=order) for b, order in pairs)))


def sliced(
    family: Family = BERT,
    *,
    empty: int | None = 0,
    neurons: bool = False,
    dtype: torch.dtype = torch.float32,
    **build: Any,
) -> Any:
    """A model of the family, sliced to an uneven keep-set; ``build`` is for :meth:`Family.build`.

    With ``neurons``, those are cut too, in random groups, and the first feed-forward part is emptied.
    """
    prunable = find_prunable(family.build(**build).to(dtype), neurons=neurons)
    kept = uneven(prunable.space, empty=empty)
    if neurons:
        prunable = in_random_groups(prunable)
        kept[prunable.space.slices[prunable.blocks.index(prunable.feed_forward[0])]] = False
    return slice_heads(prunable, kept, batch=to(family.batch(), dtype))


def few_groups(model: nn.Module) -> Prunable:
    """Both kinds of blocks, with the neurons of a block in four groups, so that there are few counts to try."""
    width = find_prunable(model, heads=False).feed_forward[0].width
    return find_prunable(model, neuron_group=width // 4)


def run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The first output at real tokens."""
    with torch.no_grad():
        output: Tensor = model(**batch)[0]
    return output[batch["attention_mask"] != 0] if output.ndim == 3 else output


class OfTokens(nn.Module):
    """A model from tokens alone to its first output, for tracers that take nothing but tensors.

    Args:
        inner: the model.
        **options: for every call of it.
    """

    def __init__(self, inner: nn.Module, **options: Any) -> None:
        super().__init__()
        self.inner, self.options = inner, options

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.inner(input_ids=ids, **self.options)[0]
        return output


def to(batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The batch with its floating-point inputs in another dtype."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor that the model returns, at real tokens."""
    with torch.no_grad():
        output: Any = model(**batch)
    named = output.items() if isinstance(output, Mapping) else [("output", output)]
    padding = batch.get("src_key_padding_mask")
    real = [] if padding is None else [~padding]
    # Texts in one batch have different lengths, so that the shape tells which mask is meant.
    real += [mask != 0 for name, mask in batch.items() if name.endswith("attention_mask")]
    found: dict[str, Tensor] = {}
    for name, value in named:
        if isinstance(value, Tensor) and value.is_floating_point():
            masks = [m for m in real if value.ndim == 3 and value.shape[:2] == m.shape]
            found[name] = value[masks[0]] if masks else value
    return found
