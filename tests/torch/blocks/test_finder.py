"""Finding attention and gating it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from tiny_models import FAMILIES, Family
from torch import Tensor, nn

from cahp_opt.selection import Selection
from cahp_opt.space import HeadSpace
from cahp_opt.torch.blocks.blocks import out_weight
from cahp_opt.torch.blocks.finder import UnsupportedModelError, find_attention
from cahp_opt.torch.pipeline.applying import left_alone
from cahp_opt.torch.running.gates import capture_head_outputs, head_mask

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


def run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**batch)[0]
    return output


@families
def test_the_output_projection_is_the_anchor(family: Family) -> None:
    """A unit's gate removes what its columns add to the block's output, and nothing else."""
    model = family.build(bare=True).double()
    attention = find_attention(model)
    batch = tiny.batch()
    seen: dict[int, Tensor] = {}
    outputs: list[Tensor] = []
    block = attention.blocks[0]
    handle = block.out.register_forward_hook(lambda *call: outputs.append(call[2]))
    kept = np.ones(attention.space.n, dtype=bool)
    kept[1] = False
    with capture_head_outputs(attention, seen.__setitem__):
        run(model, batch)
        z = seen[0]
        with head_mask(model, kept):
            run(model, batch)
    handle.remove()
    columns = slice(block.width // block.units, 2 * block.width // block.units)
    expected = z[..., columns] @ out_weight(block)[:, columns].T
    torch.testing.assert_close(outputs[0] - outputs[1], expected, rtol=0, atol=1e-12)


@families
def test_gate_gradient_is_the_finite_difference(family: Family) -> None:
    model, batch = family.build(bare=True).double(), tiny.batch()
    n = find_attention(model).space.n
    gates = torch.full((n,), 0.7, dtype=torch.float64, requires_grad=True)

    def loss(values: Tensor) -> Tensor:
        with head_mask(model, values) as yielded:
            assert yielded is values
            output: Tensor = model(**batch)[0]
        return (output[0] ** 3).mean()

    (gradient,) = torch.autograd.grad(loss(gates), gates)
    # Root-mean-square norms compute in float32, whose rounding small steps would magnify.
    rounds = any("RMSNorm" in type(m).__name__ for m in model.modules())
    size, tolerance = (3e-3, 3e-4) if rounds else (1e-5, 1e-8)
    assert gradient.shape == (n,)
    assert bool((gradient != 0).all())
    for unit in (0, n // 2, n - 1):
        step = torch.zeros(n, dtype=torch.float64)
        step[unit] = size
        with torch.no_grad():
            slope = float((loss(gates + step) - loss(gates - step)) / (2 * size))
        assert slope == pytest.approx(float(gradient[unit]), rel=0, abs=tolerance)


@families
def test_gates_per_example_act_on_their_own_example(family: Family) -> None:
    model, batch = family.build(bare=True), tiny.batch()
    n = find_attention(model).space.n
    gates = torch.rand(3, n, generator=torch.Generator().manual_seed(0))
    with head_mask(model, gates):
        together = run(model, batch)
    for row in range(3):
        with head_mask(model, gates[row]):
            alone = run(model, batch)[row]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_gates_take_the_dtype_of_the_activations() -> None:
    model = tiny.BERT.build().to(torch.bfloat16)
    n = find_attention(model).space.n
    with head_mask(model, torch.rand(n)):
        assert run(model, tiny.batch()).dtype is torch.bfloat16


def test_bad_selections_are_refused() -> None:
    model = tiny.BERT.build()
    space = find_attention(model).space
    other = HeadSpace.uniform(blocks=3, units=4)
    foreign = Selection.from_kept(other, np.ones(12, dtype=bool))
    bad: list[tuple[Any, str]] = [
        (foreign, "of another model"),
        (np.ones(11, dtype=bool), r"shape \[12\]"),
        (torch.ones(11), r"gates of shape \[12\]"),
        (torch.ones(2, 2, 12), r"gates of shape \[12\]"),
        (torch.full((12,), float("nan")), "NaN"),
        (np.arange(12), "boolean array"),
    ]
    for selection, sentence in bad:
        with pytest.raises(ValueError, match=sentence), head_mask(model, selection):
            pass
    with (
        pytest.raises(ValueError, match="2 examples, and the batch has 3"),
        head_mask(model, torch.ones(2, space.n)),
    ):
        run(model, tiny.batch())


def unsupported(case: str) -> nn.Module:
    small: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    if case == "full-width norm":
        return transformers.Olmo2Model(transformers.Olmo2Config(**small))
    if case == "torch":
        return nn.TransformerEncoderLayer(16, 2)
    if case == "no attention":
        return nn.Sequential(nn.Linear(4, 4))
    model: nn.Module = tiny.BERT.build()
    first, second = (block.module for block in find_attention(model).attention[:2])
    module: Any = second
    if case == "other head count":
        module.num_attention_heads = 2
    elif case == "not a count":
        module.num_attention_heads = 4.5
    elif case == "other width":
        module.all_head_size = 31
    elif case == "extra parameter":
        module.scale = nn.Parameter(torch.ones(4))
    elif case == "wrapped linear":
        module.query = type("Int8Linear", (nn.Linear,), {})(32, 32)
    elif case == "fewer rows":
        module.value = nn.Linear(32, 24)
    elif case == "shared weights":
        module.query.weight = first.get_parameter("query.weight")
    elif case == "compiled":
        model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("full-width norm", "q_norm.weight has shape .* ties the heads together"),
        ("torch", r"self_attn \(MultiheadAttention\) is not understood"),
        ("no attention", "Sequential without any attention block"),
        ("other head count", "layer.1.attention .*fewer|layer.1.attention .*rows|its weights have"),
        ("not a count", "num_attention_heads is 4.5"),
        ("other width", "all_head_size is 31, and its weights have 32"),
        ("extra parameter", "parameter self.scale depends on the heads"),
        ("wrapped linear", "self.query is a Int8Linear"),
        ("fewer rows", "self.value has 24 output rows"),
        ("shared weights", "shares weights with bert.encoder.layer.0.attention"),
        ("compiled", "compile after slicing"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(case: str, sentence: str) -> None:
    with pytest.raises(UnsupportedModelError, match=sentence):
        find_attention(unsupported(case))


def test_attention_of_an_unknown_class_stays_and_is_told() -> None:
    class OddAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.Parameter(torch.ones(4, 4))

    model = nn.ModuleDict({"known": tiny.BERT.build(), "odd": OddAttention()})
    attention = find_attention(model)
    assert len(attention) == len(find_attention(model["known"]))
    assert [name for name, _ in attention.skipped] == ["odd"]
    assert left_alone(find_attention(tiny.BERT.build())) is None
    told = left_alone(find_attention(model))
    assert told is not None and told.startswith("odd stays as it is: it looks like attention")


def test_weights_that_are_split_over_devices_are_told_from_quantised_ones() -> None:
    tensor: Any = pytest.importorskip("torch.distributed.tensor", reason="needs DTensor")
    distributed: Any = torch.distributed  # whose stubs do not tell of all stores
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        mesh = tensor.init_device_mesh("cpu", (1,))
        model = tiny.LLAMA_GQA.build(bare=True)
        for layer in model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.o_proj):
                split = tensor.distribute_tensor(linear.weight.data, mesh, [tensor.Shard(0)])
                linear.weight = nn.Parameter(split)
        with pytest.raises(UnsupportedModelError, match=r"split over several devices .*`tp_plan`"):
            find_attention(model)
    finally:
        torch.distributed.destroy_process_group()
