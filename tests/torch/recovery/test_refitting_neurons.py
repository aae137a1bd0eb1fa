"""Refitting models that were pruned in feed-forward neurons: one loop over the path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from cahp_opt import HeadSpace
from cahp_opt.arrays import Bools
from cahp_opt.runs.recovery import Weighting
from cahp_opt.torch import TokenWeights, calibrate, find_attention, find_prunable, refit
from cahp_opt.torch.blocks.finder import FeedForwardBlock, Prunable
from cahp_opt.torch.calibration.token_flows import flows
from cahp_opt.torch.evaluation.fidelity import fidelity_of
from cahp_opt.torch.recovery.refitting import check_refittable
from cahp_opt.torch.slicing.slicing import slice_heads, thin_copy

BATCHES = [tiny_models.batch(size=12, length=9, seed=s) for s in range(4)]
HELD_OUT = [tiny_models.batch(size=12, length=9, seed=s) for s in range(50, 54)]


def grouped(model: nn.Module, *, heads: bool = True) -> Prunable:
    """The blocks, with the neurons in five random groups each."""
    prunable = find_prunable(model, heads=heads, neuron_group=8)
    rng = np.random.default_rng(0)
    blocks = tuple(
        b._replace(order=tuple(rng.permutation(len(b.order)).tolist())) if b.order else b
        for b in prunable.space.blocks
    )
    return prunable.grouped(HeadSpace(blocks))


def some(space: HeadSpace, *, empty: int | None = None) -> Bools:
    """Half of every block, and nothing of one."""
    place = np.concatenate([np.arange(units) for units in space.units])
    kept: Bools = place < (space.units // 2)[space.block_of]
    if empty is not None:
        kept[space.slices[empty]] = False
    return kept


def batches_of(family: tiny_models.Family, seeds: range = range(4)) -> list[dict[str, Tensor]]:
    padded = (
        family.name != "gemma2"
    )  # whose stock attention to padding alone is NaN in double precision
    return [family.batch(size=12, length=9, seed=seed, padded=padded) for seed in seeds]


def distance(dense: nn.Module, model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    total = 0.0
    for batch in batches:
        theirs, mine = (tiny_models.outputs(m, batch) for m in (dense, model))
        total += sum(float((theirs[name] - mine[name]).square().sum()) for name in theirs)
    return total


REPAIRED = [
    "bert",  # a norm behind the stream
    "gpt2",
    "llama-gqa",
    "gpt-neox",  # attention and feed-forward part side by side
    "falcon",
    "gemma2",  # a norm between the part and the stream
    "t5",  # two stacks of layers
    "bart",  # and two kinds of attention in a layer
]


@pytest.mark.parametrize("name", REPAIRED)
def test_neurons_are_refitted_on_held_out_texts(name: str) -> None:
    family = tiny_models.named(name)
    dense = family.build()
    prunable = grouped(dense, heads=name not in ("t5", "bart"))
    model, other = (slice_heads(prunable, some(prunable.space)) for _ in range(2))
    held_out = batches_of(family, range(50, 53))
    before = distance(dense, model, held_out)
    fits = refit(model, prunable, batches_of(family), weighting=Weighting.EQUAL)
    assert distance(dense, model, held_out) < 0.9 * before
    parts = [fit.block for fit in fits if fit.feed_forward]
    assert parts == [block.name for block in prunable.feed_forward]
    if name in ("bert", "t5"):  # runs that resume, and runs that cannot
        refit(other, prunable, batches_of(family), weighting=Weighting.EQUAL, memory=0)
        for mine, again in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, again, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", REPAIRED)
def test_keeping_everything_changes_nothing(name: str) -> None:
    family = tiny_models.named(name)
    dense = family.build().double()
    model = copy.deepcopy(dense)
    heads = name not in ("t5", "bart")
    batches = batches_of(family, range(2))
    mine, theirs = (grouped(m, heads=heads) for m in (model, dense))
    refit(mine, theirs, batches, ridge=1e-10, weighting=Weighting.EQUAL)
    assert distance(dense, model, batches) < 1e-10


@pytest.mark.parametrize("name", ["bert", "llama-gqa", "gpt-neox", "modernbert"])
def test_redundant_neurons_are_replaced(name: str) -> None:
    """Every odd neuron is a copy of the one before it, and is read with other weights."""
    dense = tiny_models.named(name).build().double()
    prunable = find_prunable(dense, heads=False, neuron_group=1)
    with torch.no_grad():
        for block in prunable.feed_forward:
            for piece, weight in zip(block.pieces, block.weights, strict=True):
                if weight is not block.out.get_parameter("weight"):
                    rows = weight.movedim(piece.axis, 0)
                    rows[1::2] = rows[0::2].clone()
    kept = np.arange(prunable.space.n) % 2 == 0
    model = slice_heads(prunable, kept)
    before = distance(dense, model, BATCHES)
    refit(model, prunable, BATCHES, ridge=1e-10)
    assert before > 1e-2
    assert distance(dense, model, BATCHES) < 1e-10 * before


class Where(NamedTuple):
    """Where the stream behind the second feed-forward part is seen: what a module reads, or returns."""

    name: str
    path: str
    returns: bool = False


def seen(model: nn.Module, out: str, where: Where, batch: dict[str, Tensor]) -> list[Tensor]:
    """The input of a linear layer, and the stream behind it, at real tokens."""
    found: dict[str, Tensor] = {}

    def at_out(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found["inner"] = args[0]

    def at_stream(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found["stream"] = output if where.returns else args[0]

    hooks = [
        model.get_submodule(out).register_forward_hook(at_out),
        model.get_submodule(where.path).register_forward_hook(at_stream),
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return [real(found[name], batch) for name in ("inner", "stream")]


def real(values: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The rows that are not padding."""
    return (
        values[batch["attention_mask"] != 0] if "attention_mask" in batch else values.flatten(0, 1)
    )


@pytest.mark.parametrize("weighting", [Weighting.SENSITIVITY, Weighting.EQUAL])
@pytest.mark.parametrize(
    "where",
    [
        Where("bert", "bert.encoder.layer.1.output.LayerNorm"),
        Where("llama-gqa", "model.layers.2.input_layernorm"),
        Where("gpt-neox", "gpt_neox.layers.2.input_layernorm"),
        Where("modernbert", "model.layers.2.attn_norm"),
        Where("gemma2", "model.layers.1.mlp.down_proj", returns=True),
    ],
    ids=lambda where: where.name,
)
def test_it_is_plain_least_squares(where: Where, weighting: Weighting) -> None:
    """What a least-squares fit cannot explain is orthogonal to its inputs, and nothing behind it undoes
    that: in a layer where both parts add to the stream at once the last fit counts."""
    family = tiny_models.named(where.name)
    dense, batches = family.build().double(), batches_of(family)
    prunable = grouped(dense)
    model = slice_heads(prunable, some(prunable.space))
    out = prunable.feed_forward[1]
    x, y, w = [], [], []
    refit(model, prunable, batches, ridge=0.0, weighting=weighting)
    number = prunable.blocks.index(out)
    for batch in batches:
        (inner, stream), (_, goal) = (seen(m, out.name, where, batch) for m in (model, dense))
        x.append(inner)
        y.append(goal - stream)
        gradients = [f.gradient for f in flows(prunable, batch, fidelity_of(dense), 0)[number]]
        by_token = torch.stack([g.square().sum(dim=-1) for g in gradients]).sum(dim=0)
        w.append(real(by_token[..., None], batch)[:, 0])
    weights = torch.cat(w) if weighting is Weighting.SENSITIVITY else torch.ones(len(torch.cat(x)))
    rows, left = torch.cat(x), torch.cat(y)
    if out.out.bias is not None:
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    root = weights.double().sqrt()[:, None]
    rows, left = rows * root, left * root
    scale = rows.norm(dim=0)[:, None] * left.norm(dim=0)
    assert float((rows.T @ left / scale).abs().max()) < 1e-6
    assert float(left.norm()) > 1e-3 * float(root.norm())


def test_an_empty_part_only_gets_the_mean_as_its_bias() -> None:
    dense = tiny_models.BERT.build(bare=True).double()
    prunable = grouped(dense)
    kept = np.ones(prunable.space.n, dtype=bool)
    kept[prunable.space.slices[1]] = False
    model = slice_heads(prunable, kept)
    refit(model, prunable, BATCHES, weighting=Weighting.EQUAL)
    where = Where("bert", "encoder.layer.0.output.dense", returns=True)
    out = torch.cat([seen(dense, where.path, where, batch)[1] for batch in BATCHES])
    ghost = find_prunable(model).feed_forward[0]
    assert ghost.ghost and not ghost.out.get_parameter("weight").any()
    torch.testing.assert_close(ghost.out.get_parameter("bias").detach(), out.mean(dim=0))


def test_an_empty_part_stays_empty_where_heads_alone_are_asked_for() -> None:
    dense = tiny_models.BERT.build(bare=True)
    prunable = grouped(dense)
    model = slice_heads(prunable, some(prunable.space, empty=3))
    fits = refit(find_attention(model), find_attention(dense), BATCHES)
    ghost = find_prunable(model).feed_forward[1]
    assert len(fits) == 6 and not ghost.out.get_parameter("weight").any()


def test_every_layer_of_the_unpruned_model_runs_once() -> None:
    for family, layers in (
        (tiny_models.BERT, [f"bert.encoder.layer.{n}.attention.self" for n in range(3)]),
        (tiny_models.named("t5"), [f"encoder.block.{n}" for n in range(2)]),
    ):
        dense = family.build()
        prunable = grouped(dense, heads=False)
        model = slice_heads(prunable, some(prunable.space))
        batches = batches_of(family)
        with counted([dense.get_submodule(path) for path in layers], at_least=12) as runs:
            refit(model, prunable, batches, weighting=Weighting.EQUAL)
        assert runs == [len(batches) + 1] * len(runs)  # and the first batch, to look at it


@contextmanager
def counted(layers: list[nn.Module], *, at_least: int) -> Iterator[list[int]]:
    """How often every layer runs on as many examples."""
    runs = [0] * len(layers)

    def counter(number: int) -> Callable[..., None]:
        def count(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            runs[number] += len(hidden) >= at_least

        return count

    hooks = [
        layer.register_forward_pre_hook(counter(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    yield runs
    for hook in hooks:
        hook.remove()


def test_attention_is_fitted_where_neurons_alone_were_cut() -> None:
    dense = tiny_models.LLAMA_GQA.build()
    prunable = grouped(dense, heads=False)
    models = [slice_heads(prunable, some(prunable.space)) for _ in range(4)]
    fits = refit(models[0], dense, BATCHES)
    assert [fit.feed_forward for fit in fits] == [False, True] * 3
    assert refit(models[1], prunable, BATCHES) == fits
    refit(models[2], dense, BATCHES, feed_forward=False)
    after, _, alone, before = (
        m.get_parameter("model.layers.0.mlp.down_proj.weight") for m in models
    )
    assert torch.equal(alone, before) and not torch.equal(after, before)


def test_tokens_weigh_by_the_block_itself_or_by_the_one_in_its_layer() -> None:
    dense = tiny_models.BERT.build()
    attention, both = find_attention(dense), find_prunable(dense)
    weights = {"attention": TokenWeights(attention), "both": TokenWeights(both)}
    like = torch.zeros(12, 9, 32)
    for number, block in enumerate(both):
        found = {
            name: one.of(block.name, like, BATCHES[0], 0).squeeze(-1)
            for name, one in weights.items()
        }
        own = flows(both, BATCHES[0], fidelity_of(dense), 0)
        nearest = number - number % 2
        for name, at in (("both", number), ("attention", nearest)):
            expected = torch.stack([f.gradient.square().sum(dim=-1) for f in own[at]]).sum(dim=0)
            torch.testing.assert_close(found[name], expected)
    torch.testing.assert_close(
        weights["both"].of(attention.blocks[1].name, like.flatten(0, 1), BATCHES[0], 0),
        weights["both"].of(attention.blocks[1].name, like, BATCHES[0], 0).flatten(0, 1),
    )


def test_calibration_hands_over_the_weights_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_models.BERT.build()
    prunable = grouped(dense)
    alone, shared = (slice_heads(prunable, some(prunable.space)) for _ in range(2))
    refit(alone, prunable, BATCHES)
    weights = TokenWeights(prunable)
    calibrate(
        prunable,
        BATCHES,
        sensitivity_examples=100,
        gradient_examples=0,
        densities=(),
        token_weights=weights,
    )
    monkeypatch.setattr("cahp_opt.torch.recovery.token_weights.flows", None)
    refit(shared, prunable, BATCHES, weighting=weights)
    for mine, theirs in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_parts_that_are_shared_or_run_twice_are_left_alone() -> None:
    dense = tiny_models.LLAMA_GQA.build()
    thin = thin_copy(grouped(dense, heads=False), some(grouped(dense, heads=False).space))
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    refit(thin, dense, BATCHES)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())

    for layer in dense.model.layers[1:]:
        layer.mlp = dense.model.layers[0].mlp
    prunable = find_prunable(dense)
    model = slice_heads(prunable, some(prunable.space))
    assert not any(fit.feed_forward for fit in refit(model, prunable, BATCHES))


def test_a_part_with_an_adapter_is_fitted_under_it() -> None:
    peft: Any = pytest.importorskip("peft")
    dense = tiny_models.LLAMA_GQA.build()
    config = peft.LoraConfig(r=4, target_modules=["down_proj"])
    dense = peft.inject_adapter_in_model(config, dense)
    prunable = grouped(dense)
    model = slice_heads(prunable, some(prunable.space))
    before = distance(dense, model, HELD_OUT)
    fits = refit(model, prunable, BATCHES)
    assert sum(fit.feed_forward for fit in fits) == 3
    assert distance(dense, model, HELD_OUT) < 0.9 * before


def test_errors() -> None:
    dense = tiny_models.BERT.build()
    prunable = grouped(dense)
    model = slice_heads(prunable, some(prunable.space))
    check_refittable(prunable, BATCHES[0])
    parts = grouped(dense, heads=False)
    narrow = find_prunable(slice_heads(parts, some(parts.space)), heads=False)
    with pytest.raises(ValueError, match="`model` has the blocks .* and `dense` has"):
        refit(find_prunable(model), find_attention(dense), BATCHES)
    with pytest.raises(ValueError, match="same object"):
        refit(prunable, dense, BATCHES)
    with pytest.raises(ValueError, match="has 40 neurons in `model` and 16 in `dense`"):
        refit(find_prunable(dense, heads=False), narrow, BATCHES)
    for block in prunable.feed_forward[:1]:
        assert isinstance(block, FeedForwardBlock)
        with torch.no_grad():
            block.out.get_parameter("weight")[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"at 'bert.encoder.layer.0.output.dense' hold NaN"):
        refit(model, prunable, BATCHES)
    with pytest.raises(ValueError, match="did not run block"):
        check_refittable(find_prunable(Skipping(), heads=False), BATCHES[0])


class Skipping(nn.Module):
    """A model with a part that it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = input_ids[..., None].float().expand(-1, -1, 32)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 40), nn.Linear(40, 32)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.fc1(hidden)
        return hidden + made[..., :32]
