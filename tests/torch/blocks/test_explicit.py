"""The explicit form of torch's attention module is the stock one, seen from outside."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cahp_opt.torch import UnsupportedModelError, explicit_attention
from cahp_opt.torch.blocks.explicit import ExplicitAttention

WIDTH, HEADS, BATCH, QUERIES, KEYS = 12, 3, 2, 4, 5


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def slow_path() -> Iterator[None]:
    """Torch's fused kernels round in another order."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def pair(**options: Any) -> tuple[Any, Any]:
    """A stock module with biases that are not zero, and its explicit copy; float64."""
    stock = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.normal_(std=0.5)
    explicit: Any = copy.deepcopy(stock)
    assert explicit_attention(explicit) == 1
    assert type(explicit) is ExplicitAttention
    return stock, explicit


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def same(stock: nn.Module, explicit: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Outputs, weights and gradients are equal to rounding."""
    stock.zero_grad()
    explicit.zero_grad()
    torch.manual_seed(1)
    expected, weights = stock(*args, **kwargs)
    torch.manual_seed(1)
    found, other = explicit(*args, **kwargs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (weights is None) == (other is None)
    if weights is not None:
        torch.testing.assert_close(other, weights, rtol=0, atol=1e-12)
    expected.sin().sum().backward()
    found.sin().sum().backward()
    for (name, a), (_, b) in zip(
        stock.named_parameters(), explicit.named_parameters(), strict=True
    ):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 7, "vdim": 10},
        {"kdim": 7, "vdim": 10, "bias": False, "add_bias_kv": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("need_weights", [True, False])
def test_every_call_is_the_stock_one(
    batch_first: bool, options: dict[str, Any], need_weights: bool
) -> None:
    stock, explicit = pair(batch_first=batch_first, **options)

    def states(length: int, width: int, batched: bool = True) -> Tensor:
        if not batched:
            return normal(length, width)
        return normal(BATCH, length, width) if batch_first else normal(length, BATCH, width)

    kdim, vdim = options.get("kdim", WIDTH), options.get("vdim", WIDTH)
    x, q = states(QUERIES, WIDTH), states(QUERIES, WIDTH)
    k, v = states(KEYS, kdim), states(KEYS, vdim)
    pads = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    pads[0, -2:] = True
    forbidden = torch.rand(QUERIES, KEYS) < 0.3
    forbidden[:, 0] = False
    each = torch.rand(BATCH * HEADS, QUERIES, KEYS) < 0.3
    each[:, :, 0] = False
    wanted = {"need_weights": need_weights}
    for average in (True, False):
        same(stock, explicit, q, k, v, **wanted, average_attn_weights=average)
    for padding in (None, pads, normal(BATCH, KEYS)):
        for mask in (None, forbidden, each, normal(QUERIES, KEYS)):
            if padding is None or mask is None or padding.dtype == mask.dtype:
                same(stock, explicit, q, k, v, padding, attn_mask=mask, **wanted)
    alone = [states(n, w, False) for n, w in ((QUERIES, WIDTH), (KEYS, kdim), (KEYS, vdim))]
    same(stock, explicit, *alone, pads[0], attn_mask=forbidden, **wanted)
    same(stock, explicit, *alone, attn_mask=each[:HEADS], average_attn_weights=False, **wanted)
    if kdim == WIDTH:
        same(stock, explicit, x, x, x, **wanted)
        same(stock, explicit, q, k, k, pads, **wanted)
    causal = torch.triu(torch.ones(QUERIES, QUERIES, dtype=torch.bool), 1)
    k, v = states(QUERIES, kdim), states(QUERIES, vdim)
    same(stock, explicit, x, k, v, attn_mask=causal, is_causal=True, **wanted)
    same(stock, explicit, x, k, v, pads[:, :QUERIES], wanted["need_weights"], causal, True, True)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_in_training_only(need_weights: bool) -> None:
    stock, explicit = pair(dropout=0.4, batch_first=True)
    x = normal(BATCH, QUERIES, WIDTH)
    same(stock, explicit, x, x, x, need_weights=need_weights)
    noisy = explicit(x, x, x)[0]
    stock.eval()
    explicit.eval()
    same(stock, explicit, x, x, x, need_weights=need_weights)
    assert not torch.allclose(noisy, explicit(x, x, x)[0])


def test_the_output_projection_is_called_batch_first() -> None:
    _, explicit = pair(batch_first=False)
    shapes: list[list[int]] = []
    explicit.get_submodule("out_proj").register_forward_pre_hook(
        lambda module, args: shapes.append(list(args[0].shape))
    )
    x = normal(QUERIES, BATCH, WIDTH)
    explicit(x, x, x)
    explicit(x[:, 0], x[:, 0], x[:, 0])
    assert shapes == [[BATCH, QUERIES, WIDTH], [1, QUERIES, WIDTH]]
    assert type(explicit.get_submodule("out_proj")) is nn.Linear


@pytest.mark.parametrize("options", [{}, {"kdim": 7, "vdim": 10}, {"add_bias_kv": True}], ids=str)
def test_heads_can_be_cut(options: dict[str, Any]) -> None:
    stock, explicit = pair(batch_first=True, **options)
    k = normal(BATCH, KEYS, options.get("kdim", WIDTH))
    v = normal(BATCH, KEYS, options.get("vdim", WIDTH))
    q, dim = normal(BATCH, QUERIES, WIDTH), WIDTH // HEADS
    rows = torch.tensor([*range(dim), *range(2 * dim, 3 * dim)])  # heads 0 and 2
    packed = torch.cat([rows, WIDTH + rows, 2 * WIDTH + rows])
    cuts = {
        "in_proj_weight": (0, packed),
        "in_proj_bias": (0, packed),
        "out_proj.weight": (1, rows),
    }
    cuts |= {f"{part}_proj_weight": (0, rows) for part in "qkv"}
    cuts |= {"bias_k": (2, rows), "bias_v": (2, rows)}
    for name, parameter in list(explicit.named_parameters()):
        if name in cuts:
            site, _, leaf = name.rpartition(".")
            cut = nn.Parameter(parameter.detach().index_select(*cuts[name]))
            setattr(explicit.get_submodule(site), leaf, cut)
    explicit.num_heads = 2
    out = stock.get_submodule("out_proj")
    with torch.no_grad():
        out.get_parameter("weight")[:, dim : 2 * dim] = 0
    for need_weights in (True, False):
        expected = stock(q, k, v, need_weights=need_weights)[0]
        found = explicit(q, k, v, need_weights=need_weights)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def layers(kind: type[nn.Module], **options: Any) -> tuple[nn.Module, nn.Module]:
    stock = kind(WIDTH + 4, 4, 20, batch_first=True, dropout=0.3, dtype=torch.float64, **options)
    for module in stock.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it draws in the order of its input's memory, which is another
    explicit = copy.deepcopy(stock)
    assert explicit_attention(explicit) == (2 if kind is nn.TransformerDecoderLayer else 1)
    return stock, explicit


def gates(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that remove everything attention adds, where its output projection is called."""
    return [
        m.out_proj.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
        for m in model.modules()
        if isinstance(m, ExplicitAttention)
    ]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_encoder_layers(norm_first: bool, training: bool, fast: bool) -> None:
    stock, explicit = layers(nn.TransformerEncoderLayer, norm_first=norm_first)
    stock.train(training)
    explicit.train(training)
    x = normal(BATCH, QUERIES, WIDTH + 4)
    pads = torch.zeros(BATCH, QUERIES, dtype=torch.bool)
    pads[1, 2:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
    calls: tuple[dict[str, Any], ...] = (
        {},
        {"src_key_padding_mask": pads},
        {"src_mask": causal, "is_causal": True},
    )
    for options in calls:
        with torch.set_grad_enabled(not fast):
            torch.manual_seed(2)
            expected = stock(x, **options)
            torch.manual_seed(2)
            found = explicit(x, **options)
        real = ~pads if "src_key_padding_mask" in options else torch.ones_like(pads)
        torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-12)


def test_decoder_layers() -> None:
    stock, explicit = layers(nn.TransformerDecoderLayer)
    x, memory = normal(BATCH, QUERIES, WIDTH + 4), normal(BATCH, KEYS, WIDTH + 4)
    pads = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    pads[1, 2:] = True
    causal = torch.triu(torch.ones(QUERIES, QUERIES, dtype=torch.bool), 1)
    for training in (True, False):
        found: list[Tensor] = []
        for model in (stock.train(training), explicit.train(training)):
            torch.manual_seed(3)
            options = {"tgt_mask": causal, "memory_key_padding_mask": pads}
            found.append(model(x, memory, **options, tgt_is_causal=True))
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_encoders_do_not_go_around_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True, dtype=torch.float64)
    stock = nn.TransformerEncoder(layer, 2).eval()
    explicit = copy.deepcopy(stock)
    assert explicit_attention(explicit) == 2
    assert explicit_attention(explicit) == 0
    x = normal(BATCH, QUERIES, 16)
    pads = torch.zeros(BATCH, QUERIES, dtype=torch.bool)
    pads[1, 2:] = True
    with torch.no_grad():
        for padding in (None, pads):
            real = ~pads if padding is not None else torch.ones_like(pads)
            expected = stock(x, src_key_padding_mask=padding)[real]
            found = explicit(x, src_key_padding_mask=padding)[real]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            handles = gates(explicit)
            assert len(handles) == 2
            assert not torch.allclose(explicit(x, src_key_padding_mask=padding)[real], expected)
            for handle in handles:
                handle.remove()
    # A gate alone makes torch leave the fused path; without one the module must be called too.
    calls: list[int] = []
    original = ExplicitAttention.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(ExplicitAttention, "forward", counted)
    with torch.no_grad():
        explicit(x, src_key_padding_mask=pads)
    assert len(calls) == 2


def test_parameters_hooks_and_sharing_stay() -> None:
    shared = nn.MultiheadAttention(WIDTH, HEADS)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})}).eval()
    before = dict(model.named_parameters())
    called: list[int] = []
    handle = shared.register_forward_hook(lambda *_: called.append(1))
    assert explicit_attention(model) == 1
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert model["a"] is model.get_submodule("b.c")
    x = torch.randn(QUERIES, BATCH, WIDTH)
    output = model["a"](x, x, x)[0]
    assert called and not model["a"].training
    handle.remove()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied["a"]) is ExplicitAttention
        assert torch.equal(copied["a"](x, x, x)[0], output)
    other = nn.MultiheadAttention(WIDTH, HEADS).eval()
    other.load_state_dict(model["a"].state_dict())
    with slow_path():
        torch.testing.assert_close(other(x, x, x)[0], output)


def test_compile_and_export() -> None:
    _, explicit = pair(batch_first=True)
    x = normal(BATCH, QUERIES, WIDTH)
    expected = explicit(x, x, x)[0]
    compiled: Any = torch.compile(explicit, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, x, x)[0], expected)
    program: Any = torch.export.export(explicit, (x, x, x))
    torch.testing.assert_close(program.module()(x, x, x)[0], expected)


def test_what_cannot_be_done_is_refused() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS) for _ in range(2)])
    register: Any = parametrize.register_parametrization
    register(model.get_submodule("1.out_proj"), "weight", nn.Identity())
    with pytest.raises(UnsupportedModelError, match="1 .MultiheadAttention. has an output proj"):
        explicit_attention(model)
    assert all(type(m) is nn.MultiheadAttention for m in model)

    class Custom(nn.MultiheadAttention):
        """Nobody knows what it computes."""

    assert explicit_attention(nn.ModuleList([Custom(WIDTH, HEADS)])) == 0

    _, explicit = pair(batch_first=True)
    x = normal(BATCH, QUERIES, WIDTH)
    with pytest.raises(ValueError, match="`is_causal` is a hint"):
        explicit(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match="`attn_mask` must be boolean or floating"):
        explicit(x, x, x, attn_mask=torch.ones(QUERIES, QUERIES, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`attn_mask` has shape \[1, 4, 4\]"):
        explicit(x, x, x, attn_mask=torch.ones(1, QUERIES, QUERIES, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`key_padding_mask` has shape \[2, 3\]"):
        explicit(x, x, x, torch.ones(BATCH, 3, dtype=torch.bool))
    nested = torch.nested.as_nested_tensor([x[0], x[1]], layout=torch.jagged)
    with pytest.raises(ValueError, match="nested tensors; pad them"):
        explicit(nested, nested, nested)


def test_siglip_pooling_initialises_and_reloads(tmp_path: Path) -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    stock: Any = transformers.SiglipVisionModel(config)
    stock.eval()
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = stock(pixels).pooler_output
    stock.save_pretrained(tmp_path)
    explicit = copy.deepcopy(stock)
    assert explicit_attention(explicit) == 1

    class Explicit(transformers.SiglipVisionModel):  # type: ignore[no-untyped-call]
        """Built on the meta device by the stock loader."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            assert self.device.type == "meta"
            assert explicit_attention(self) == 1

    loaded: Any = Explicit.from_pretrained(tmp_path)
    loaded.eval()
    with torch.no_grad():
        for model in (explicit, loaded):
            torch.testing.assert_close(model(pixels).pooler_output, expected)
        handles = gates(explicit)
        assert len(handles) == 1
        assert not torch.allclose(explicit(pixels).pooler_output, expected)
    explicit.init_weights()
    assert all(torch.isfinite(p).all() for p in explicit.parameters())
