"""Refitting: plain least squares on the pruned path, and nothing else touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor, nn
from torch.nn import functional

from cahp_opt.runs.recovery import Weighting
from cahp_opt.torch.blocks.blocks import out_bias, out_weight
from cahp_opt.torch.blocks.finder import AttentionBlock, find_attention
from cahp_opt.torch.calibration.calibration import calibrate
from cahp_opt.torch.calibration.token_flows import flows
from cahp_opt.torch.evaluation.fidelity import ClassLogits, fidelity_of
from cahp_opt.torch.recovery import refitting
from cahp_opt.torch.recovery.refitting import RIDGES, refit
from cahp_opt.torch.recovery.ridge import RidgeSums
from cahp_opt.torch.recovery.token_weights import TokenWeights
from cahp_opt.torch.running.repeatable_batches import Repeated
from cahp_opt.torch.slicing.slicing import slice_heads, thin_copy

TINY = 1e-10
BATCHES = [tiny_models.batch(size=12, length=9, seed=s) for s in range(4)]


def keep(model: nn.Module, counts: list[int]) -> np.ndarray:
    space = find_attention(model).space
    place = np.concatenate([np.arange(units) for units in space.units])
    return place < np.array(counts)[space.block_of]


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return fidelity_of(model).output(model(**batch), batch)


def distance(dense: nn.Module, model: nn.Module) -> float:
    fidelity = fidelity_of(dense)
    return sum(
        float(fidelity.distance(output(dense, b), output(model, b), b).sum()) for b in BATCHES
    )


def through_block(model: nn.Module, block: AttentionBlock, batch: dict[str, Tensor]) -> Any:
    """Input and output of the output projection, and input of the layer around it."""
    seen: dict[str, Tensor] = {}

    def at_out(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen["heads"], seen["out"] = args[0], out

    def at_layer(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["residual"] = args[0]

    layer = model.get_submodule(block.name.removesuffix(".attention"))
    hooks = [block.out.register_forward_hook(at_out), layer.register_forward_pre_hook(at_layer)]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    real = batch["attention_mask"].bool()
    return [seen[name][real] for name in ("heads", "out", "residual")]


@pytest.mark.parametrize(
    ("family", "ridge"),
    [
        *(pytest.param(family, TINY, id=family.name) for family in tiny_models.FAMILIES),
        pytest.param(tiny_models.BERT, 1e-2, id="bert and a large ridge"),
        pytest.param(tiny_models.LLAMA_GQA, 1e-2, id="llama-gqa and a large ridge"),
    ],
)
def test_keeping_everything_changes_nothing(family: tiny_models.Family, ridge: float) -> None:
    dense = family.build().double()
    model = copy.deepcopy(dense)
    few = BATCHES[:2]
    refit(model, dense, few, ridge=ridge)
    for batch in few:
        torch.testing.assert_close(output(model, batch), output(dense, batch), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", tiny_models.FAMILIES, ids=lambda f: f.name)
def test_redundant_heads_are_replaced(family: tiny_models.Family) -> None:
    """Every odd unit is a copy of the unit before it, so even ones can say everything."""
    dense = family.build().double()
    with torch.no_grad():
        for block in find_attention(dense).attention:
            weight = out_weight(block)
            columns = block.width // block.units
            duplicate(block, dense)
            for u in range(0, block.units, 2):  # and the copies are read with other weights
                weight[:, (u + 1) * columns : (u + 2) * columns] *= -0.5
    kept = np.arange(find_attention(dense).space.n) % 2 == 0
    model = slice_heads(dense, kept)
    before = distance(dense, model)
    refit(model, dense, BATCHES, ridge=TINY)
    assert before > 1e-3
    assert distance(dense, model) < 1e-6 * before


def duplicate(block: AttentionBlock, model: nn.Module) -> None:
    """Make each odd unit compute what the even one before it does."""
    for piece in block.pieces:
        entries = block.site.get_parameter(piece.path).movedim(piece.axis, 0)
        for u in range(0, block.units, 2):
            entries[piece.unit_of == u + 1] = entries[piece.unit_of == u].clone()
    for parameter in model.parameters():  # a position bias per head (MPNet) has to be the same too
        if parameter.shape[-1] == block.heads and parameter.ndim == 2:
            parameter[:, 1::2] = parameter[:, 0::2].clone()


@pytest.mark.parametrize("family", tiny_models.FAMILIES, ids=lambda f: f.name)
def test_refit_lowers_the_distance(family: tiny_models.Family) -> None:
    dense = family.build()
    model = slice_heads(dense, keep(dense, [2, 1, 3]))
    before = distance(dense, model)
    refit(model, dense, BATCHES)
    assert distance(dense, model) < 0.9 * before


def test_weights_are_those_of_plain_least_squares_along_the_pruned_path() -> None:
    dense = tiny_models.BERT.build(bare=True).double()
    model = slice_heads(dense, keep(dense, [2, 0, 3]))
    refit(model, dense, BATCHES, ridge=0.0, weighting=Weighting.EQUAL)
    for b in (0, 2):
        mine, theirs = find_attention(model).attention[b], find_attention(dense).attention[b]
        x, y = [], []
        for batch in BATCHES:
            heads, _, residual = through_block(model, mine, batch)
            _, out, goal = through_block(dense, theirs, batch)
            x.append(heads)
            y.append(out + goal - residual)
        rows = torch.cat([torch.cat(x), torch.ones(sum(map(len, x)), 1)], dim=1).numpy()
        expected = np.linalg.lstsq(rows, torch.cat(y).numpy(), rcond=None)[0]
        np.testing.assert_allclose(out_weight(mine).detach().numpy(), expected[:-1].T, atol=1e-8)
        bias = out_bias(mine)
        assert bias is not None
        np.testing.assert_allclose(bias.detach().numpy(), expected[-1], atol=1e-8)


def through_feed_forward(
    model: nn.Module, out: str, reader: str, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Input of a feed-forward part's last linear layer, and the stream behind it that a norm reads."""
    seen: dict[str, Tensor] = {}

    def at_out(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["inner"] = args[0]

    def at_norm(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["stream"] = args[0]

    hooks = [
        model.get_submodule(out).register_forward_pre_hook(at_out),
        model.get_submodule(reader).register_forward_pre_hook(at_norm),
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    real = batch["attention_mask"].bool()
    return seen["inner"][real], seen["stream"][real]


@pytest.mark.parametrize("family", [tiny_models.BERT, tiny_models.GPT2], ids=lambda f: f.name)
def test_feed_forward_parts_are_fitted_by_plain_least_squares(family: tiny_models.Family) -> None:
    """With the norm behind the stream, and with the norm before it, where the next layer reads the stream."""
    dense = family.build(bare=True).double()
    model = slice_heads(dense, keep(dense, [2, 1, 3]))
    fits = refit(model, dense, BATCHES, ridge=0.0, weighting=Weighting.EQUAL)
    assert [fit.feed_forward for fit in fits] == [False, True] * 3
    assert [fit.block for fit in fits[1::2]] == [
        block.name for block in find_attention(dense).attention
    ]
    bert = family is tiny_models.BERT
    paths = (
        ("encoder.layer.1.output.dense", "encoder.layer.1.output.LayerNorm")
        if bert
        else ("h.1.mlp.c_proj", "h.2.ln_1")
    )
    x, y = [], []
    for batch in BATCHES:
        (inner, stream), (_, goal) = (
            through_feed_forward(m, *paths, batch) for m in (model, dense)
        )
        x.append(inner)
        y.append(goal - stream)
    rows = torch.cat([torch.cat(x), torch.ones(sum(map(len, x)), 1)], dim=1)
    left = rows.T @ torch.cat(
        y
    )  # what a least squares fit cannot explain is orthogonal to its inputs
    scale = rows.norm(dim=0)[:, None] * torch.cat(y).norm(dim=0)
    assert float((left / scale).abs().max()) < 1e-7
    assert float(torch.cat(y).norm()) > 1e-3  # and it could not explain everything


def test_feed_forward_parts_repair_more() -> None:
    for family in (tiny_models.BERT, tiny_models.LLAMA_GQA):
        dense = family.build()
        models = [slice_heads(dense, keep(dense, [2, 1, 3])) for _ in range(2)]
        for model, feed_forward in zip(models, (False, True), strict=True):
            refit(model, dense, BATCHES, ridge=1e-2, feed_forward=feed_forward)
        assert distance(dense, models[1]) < 0.9 * distance(dense, models[0])


def test_a_feed_forward_part_behind_which_there_is_a_norm_is_left_alone() -> None:
    dense = tiny_models.LLAMA_GQA.build()
    scaled = Scaled(dense.model.layers[1].mlp)
    dense.model.layers[1].mlp = scaled
    model = slice_heads(dense, keep(dense, [2, 1, 3]))
    before = copy.deepcopy(model.model.layers[1].mlp.state_dict())
    fits = refit(model, dense, BATCHES)
    assert [fit.feed_forward for fit in fits] == [False, True, False, False, True]
    for name, value in model.model.layers[1].mlp.state_dict().items():
        assert torch.equal(value, before[name])


def test_feed_forward_parts_that_layers_share_are_left_alone() -> None:
    dense = tiny_models.LLAMA_GQA.build()
    for layer in dense.model.layers[1:]:
        layer.mlp = dense.model.layers[0].mlp
    model = slice_heads(dense, keep(dense, [2, 1, 3]))
    assert not any(fit.feed_forward for fit in refit(model, dense, BATCHES))


def test_feed_forward_parts_of_the_dense_model_are_left_alone() -> None:
    dense = tiny_models.LLAMA_GQA.build()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    model = thin_copy(find_attention(dense), keep(dense, [2, 1, 3]))
    assert not any(fit.feed_forward for fit in refit(model, dense, BATCHES))
    for name, value in dense.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("scaling", [1, 2])
def test_adapters_on_feed_forward_parts_are_left_alone(scaling: int) -> None:
    peft: Any = pytest.importorskip("peft")
    dense = tiny_models.LLAMA_GQA.build()
    config = peft.LoraConfig(r=4, lora_alpha=4 * scaling, target_modules=["down_proj"])
    dense = peft.inject_adapter_in_model(config, dense)
    model = slice_heads(dense, keep(dense, [2, 1, 3]))
    before = {name: value.clone() for name, value in model.named_parameters()}
    fits = refit(model, dense, BATCHES, weighting=Weighting.EQUAL)
    assert not any(fit.feed_forward for fit in fits)
    for name, value in model.named_parameters():
        assert "mlp" not in name or torch.equal(value, before[name]), name


def test_a_feed_forward_part_may_be_called_by_keyword_but_not_be_left_out() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(32, 40), nn.Linear(40, 32)
            self.skips = False

        def forward(self, x: Tensor) -> Tensor:
            if self.skips and len(x) == 4:
                return torch.zeros_like(x)
            found: Tensor = self.down(input=self.up(x).relu())
            return found

    dense = tiny_models.LLAMA_GQA.build()
    dense.model.layers[1].mlp = Part()
    model = slice_heads(dense, keep(dense, [2, 1, 3]))
    assert sum(fit.feed_forward for fit in refit(model, dense, BATCHES)) == 3
    few = tiny_models.batch(size=4, length=9)
    dense.model.layers[1].mlp.skips = True
    model = slice_heads(dense, keep(dense, [2, 1, 3]))
    with pytest.raises(
        ValueError, match=r"ran 'model.layers.1.mlp.down' on .* but not on batches\[4\]"
    ):
        refit(model, dense, [*BATCHES, few])


class Scaled(nn.Module):
    """A part whose result is normed before it is added to the stream."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.norm = part, nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.part(x))
        return normed


def test_a_fit_that_is_a_loss_on_held_out_examples_is_not_used() -> None:
    dense = tiny_models.BERT.build(bare=True)
    batch = tiny_models.batch(
        size=5, length=3
    )  # far fewer rows than inputs, so that every fit is chance
    model = slice_heads(dense, keep(dense, [3, 4, 4]))
    before = {name: value.clone() for name, value in model.named_parameters()}
    fits = refit(model, dense, [batch], weighting=Weighting.EQUAL)
    lost = [fit for fit in fits if (fit.unexplained or 0) > 1]
    assert lost and len(lost) < len(fits)
    for b, block in enumerate(find_attention(model)):
        outs = (block.out, model.get_submodule(f"encoder.layer.{b}.output.dense"))
        for fit, out in zip(fits[2 * b : 2 * b + 2], outs, strict=True):
            path = next(name for name, module in model.named_modules() if module is out)
            changed = not torch.equal(before[f"{path}.weight"], out.get_parameter("weight"))
            assert changed == ((fit.unexplained or 0) <= 1)


def test_empty_block_only_gets_the_mean_as_its_bias() -> None:
    dense = tiny_models.BERT.build(bare=True).double()
    model = slice_heads(dense, keep(dense, [0, 4, 4]))
    refit(model, dense, BATCHES, weighting=Weighting.EQUAL)
    block, source = find_attention(model).attention[0], find_attention(dense).attention[0]
    out = torch.cat([through_block(dense, source, batch)[1] for batch in BATCHES])
    bias = out_bias(block)
    assert bias is not None and block.ghost
    torch.testing.assert_close(bias.detach(), out.mean(dim=0))
    assert not out_weight(block).detach().any()


def test_empty_block_without_a_bias_stays() -> None:
    dense = tiny_models.LLAMA_GQA.build()
    model = slice_heads(dense, keep(dense, [4, 0, 4]))
    refit(model, dense, BATCHES)
    assert not out_weight(find_attention(model).attention[1]).detach().any()


@pytest.mark.parametrize("family", [tiny_models.BERT, tiny_models.GPT2], ids=lambda f: f.name)
def test_resuming_equals_running_from_the_start(family: tiny_models.Family) -> None:
    dense = family.build()
    models = [slice_heads(dense, keep(dense, [2, 1, 2])) for _ in range(3)]
    refit(models[0], dense, BATCHES)
    refit(models[1], dense, BATCHES, memory=0)
    refit(
        models[2], dense, iter(BATCHES), memory=2 * 2 * 12 * 9 * 32 * 4
    )  # half of the batches fit
    for other in models[1:]:
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_room_for_small_batches_alone_changes_nothing() -> None:
    """A stream that a small batch left room for is no reason to leave a layer whose second place is not met."""
    dense = tiny_models.BERT.build()
    batches = [tiny_models.BERT.batch(size=size, length=5) for size in (1, 4)]
    models = [slice_heads(dense, keep(dense, [2, 1, 2])) for _ in range(2)]
    for model, memory in zip(models, (2**28, 4000), strict=True):
        refit(model, dense, batches, weighting=Weighting.EQUAL, memory=memory)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_padding_and_batching_change_nothing() -> None:
    dense = tiny_models.BERT.build().double()
    a, b = (slice_heads(dense, keep(dense, [2, 1, 2])) for _ in range(2))
    refit(a, dense, BATCHES)
    alone = [
        {k: v[i : i + 1, : int(batch["attention_mask"][i].sum())] for k, v in batch.items()}
        for batch in BATCHES
        for i in range(12)
    ]
    refit(b, dense, alone)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    ("family", "fail"),
    [
        (tiny_models.BERT, None),
        (tiny_models.MPNET, None),
        (tiny_models.GPT2, None),
        (tiny_models.BERT, RuntimeError),
        (tiny_models.GPT2, KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("feed_forward", [False, True])
def test_only_what_writes_to_the_stream_changes(
    family: tiny_models.Family, fail: type[BaseException] | None, feed_forward: bool
) -> None:
    dense = family.build()
    model = slice_heads(dense, keep(dense, [2, 0, 2])).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    forwards = [vars(m).get("forward") for m in (*model.modules(), *dense.modules())]

    def hooks() -> list[int]:
        both = (*model.modules(), *dense.modules())
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in both]

    hooked = hooks()

    def progress(stage: str, done: int, total: int) -> None:
        assert total == len(BATCHES)
        if fail and stage.startswith("refit block 3"):
            raise fail

    if fail:
        with pytest.raises(fail):
            refit(model, dense, BATCHES, feed_forward=feed_forward, progress=progress)
    else:
        refit(model, dense, BATCHES, feed_forward=feed_forward, progress=progress)
    blocks = find_attention(model).attention
    changeable = {id(p) for block in blocks for p in block.out.parameters()}
    if feed_forward:
        writers = ("layer.{}.output.dense", "h.{}.mlp.c_proj")
        for path, module in model.named_modules():
            if path.endswith(tuple(w.format(b) for w in writers for b in range(3))):
                changeable |= {id(p) for p in module.parameters()}
        assert len(changeable) == 12
    for name, parameter in model.named_parameters():
        assert id(parameter) in changeable or torch.equal(parameter, before[name]), name
    assert all(m.training for m in model.modules()) and not any(m.training for m in dense.modules())
    assert [vars(m).get("forward") for m in (*model.modules(), *dense.modules())] == forwards
    assert hooks() == hooked
    assert torch.equal(state, torch.random.get_rng_state())


def test_ridge_sums_equal_the_textbook() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)) + 3, rng.normal(size=(50, 2))
    sums = RidgeSums(4, 2, torch.device("cpu"))
    for rows in np.array_split(np.arange(50), 3):
        sums.add(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
    centred = x - x.mean(axis=0)
    covariance = centred.T @ centred / 50
    penalty = 0.3 * np.trace(covariance) / 4 * np.eye(4)
    expected = np.linalg.solve(covariance + penalty, centred.T @ y / 50).T
    weights, intercept = sums.solve(0.3, intercept=True)
    assert intercept is not None
    np.testing.assert_allclose(weights, expected, atol=1e-10)
    np.testing.assert_allclose(intercept, y.mean(axis=0) - expected @ x.mean(axis=0), atol=1e-10)
    moment = x.T @ x / 50
    plain, none = sums.solve(0.0, intercept=False)
    assert none is None
    np.testing.assert_allclose(plain, np.linalg.solve(moment, x.T @ y / 50).T, atol=1e-9)


def test_error_of_sums_is_that_of_the_rows() -> None:
    rng = np.random.default_rng(1)
    x, y = (
        torch.from_numpy(rng.normal(size=(30, 3)) + 2),
        torch.from_numpy(rng.normal(size=(30, 2))),
    )
    sums, more = (RidgeSums(3, 2, torch.device("cpu")) for _ in range(2))
    sums.add(x[:20], y[:20])
    more.add(x[20:], y[20:])
    for ridge in (0.0, 0.5):
        for intercept in (True, False):
            weights, constant = sums.solve(ridge, intercept=intercept)
            missed = y[20:] - x[20:] @ weights.T - (0 if constant is None else constant)
            expected = float(missed.square().sum()) / 10
            assert more.error(weights, constant) == pytest.approx(expected, rel=1e-9)
    sums.merge(more)
    whole = RidgeSums(3, 2, torch.device("cpu"))
    whole.add(x, y)
    for mine, theirs in zip(
        sums.solve(0.1, intercept=True), whole.solve(0.1, intercept=True), strict=True
    ):
        assert mine is not None and theirs is not None
        torch.testing.assert_close(mine, theirs)


def rows_of_first_block(
    model: nn.Module, dense: nn.Module
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets, and the number of its example for every row of the least squares."""
    mine, theirs = find_attention(model).attention[0], find_attention(dense).attention[0]
    x, y, example = [], [], []
    for number, batch in enumerate(BATCHES):
        heads, out, residual = through_block(model, mine, batch)
        _, dense_out, goal = through_block(dense, theirs, batch)
        x.append(heads.numpy())
        y.append((dense_out + goal - residual - out).numpy())
        example.append(12 * number + np.repeat(np.arange(12), batch["attention_mask"].sum(dim=1)))
    return np.concatenate(x), np.concatenate(y), np.concatenate(example)


def plain_ridge(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression as least squares with rows of penalty, and no penalty on the intercept."""
    weight = np.sqrt(ridge * x.var(axis=0).mean() * len(x)) * np.eye(x.shape[1])
    left = np.block([[x, np.ones((len(x), 1))], [weight, np.zeros((len(weight), 1))]])
    right = np.concatenate([y, np.zeros((len(weight), y.shape[1]))])
    found = np.linalg.lstsq(left, right, rcond=None)[0]
    return found[:-1], found[-1]


def test_the_ridge_is_the_one_that_is_best_on_every_fifth_example() -> None:
    dense = tiny_models.BERT.build(bare=True, seed=1).double()
    model = slice_heads(dense, keep(dense, [2, 4, 4]))
    x, y, example = rows_of_first_block(model, dense)
    apart = example % 5 == 4
    errors = []
    for ridge in RIDGES:
        weights, constant = plain_ridge(x[~apart], y[~apart], ridge)
        errors.append(np.square(y[apart] - x[apart] @ weights - constant).sum())
    block = find_attention(model).attention[0]
    before, bias = out_weight(block).detach().clone(), out_bias(block)
    assert bias is not None
    bias = bias.detach().clone()
    fit = refit(model, dense, BATCHES, weighting=Weighting.EQUAL)[0]
    assert fit.block == block.name and fit.ridge == RIDGES[int(np.argmin(errors))]
    assert RIDGES[0] < fit.ridge < RIDGES[-1]  # a choice, not the end of the list
    expected = min(errors) / np.square(y[apart]).sum()
    assert fit.unexplained == pytest.approx(expected, rel=1e-6)
    weights, constant = plain_ridge(x, y, fit.ridge)  # and then all examples count
    np.testing.assert_allclose(
        out_weight(block).detach().numpy(), before.numpy() + weights.T, atol=1e-8
    )
    after = out_bias(block)
    assert after is not None
    np.testing.assert_allclose(after.detach(), bias.numpy() + constant, atol=1e-8)


def test_a_given_ridge_is_used_and_so_is_the_usual_one_without_enough_examples() -> None:
    dense = tiny_models.BERT.build()
    one = [{name: value[:4] for name, value in BATCHES[0].items()}]
    for batches, ridge, used in ((BATCHES, 0.3, 0.3), (one, None, 1e-2)):
        model = slice_heads(dense, keep(dense, [2, 1, 2]))
        fits = refit(model, dense, batches, ridge=ridge)
        assert [fit.ridge for fit in fits] == [used] * 6
        assert all(fit.unexplained is None for fit in fits)


def test_without_a_bias_the_fit_has_no_intercept() -> None:
    dense = tiny_models.LLAMA_GQA.build().double()
    model = slice_heads(dense, keep(dense, [1, 4, 4]))
    sums = [find_attention(m).attention[0] for m in (model, dense)]
    x, y = [], []
    for batch in BATCHES:
        seen = [
            head_outputs(m, block, batch) for m, block in zip((model, dense), sums, strict=True)
        ]
        x.append(seen[0][0])
        y.append(seen[1][1])
    refit(model, dense, BATCHES, ridge=0.0, weighting=Weighting.EQUAL)
    expected = np.linalg.lstsq(np.concatenate(x), np.concatenate(y), rcond=None)[0].T
    assert out_bias(sums[0]) is None
    np.testing.assert_allclose(out_weight(sums[0]).detach(), expected, atol=1e-8)


def head_outputs(model: nn.Module, block: AttentionBlock, batch: dict[str, Tensor]) -> Any:
    """Input and output of an output projection, padding left out."""
    seen: list[Tensor] = []
    hook = block.out.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return [values[batch["attention_mask"].bool()].numpy() for values in seen]


class Loader:
    """Batches that are made anew every time, like those of a ``DataLoader``."""

    def __init__(self, batches: list[dict[str, Tensor]], *, shuffle: bool = False) -> None:
        self.batches, self.shuffle, self.walks = batches, shuffle, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.walks += 1
        order = self.batches[:: -1 if self.shuffle and self.walks % 2 else 1]
        for batch in order:
            yield {name: value.clone() for name, value in batch.items()}


def test_a_loader_is_walked_again_and_a_generator_is_kept() -> None:
    dense = tiny_models.BERT.build()
    models = [slice_heads(dense, keep(dense, [2, 1, 2])) for _ in range(3)]
    loader = Loader(BATCHES)
    refit(models[0], dense, BATCHES)
    refit(models[1], dense, loader)
    refit(models[2], dense, (batch for batch in BATCHES))
    assert loader.walks == 7  # a look at the first batch, and once per fitted layer
    for other in models[1:]:
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match="gives other batches when it is iterated again"):
        refit(models[0], dense, Loader(BATCHES, shuffle=True))


def test_a_loader_that_ends_early_or_late_is_found_out() -> None:
    loader = Loader(BATCHES)
    data = Repeated(loader)
    assert len(list(data)) == len(list(data)) == len(BATCHES)
    loader.batches = BATCHES[:-1]
    with pytest.raises(ValueError, match="shuffle=False"):
        list(data)
    loader.batches = [*BATCHES, BATCHES[0]]
    with pytest.raises(ValueError, match="shuffle=False"):
        list(data)


def test_collinear_inputs_are_no_trouble() -> None:
    x = torch.randn(40, 2, dtype=torch.float64)
    sums = RidgeSums(4, 1, torch.device("cpu"))
    sums.add(torch.cat([x, x], dim=1), x.sum(dim=1, keepdim=True))
    weights, _ = sums.solve(0.0, intercept=False)
    torch.testing.assert_close(weights, torch.full((1, 4), 0.5, dtype=torch.float64))
    nothing = RidgeSums(2, 1, torch.device("cpu"))
    nothing.add(torch.zeros(5, 2), torch.ones(5, 1))
    weights, intercept = nothing.solve(0.1, intercept=True)
    assert intercept is not None and intercept.item() == 1 and not weights.any()


def test_errors() -> None:
    dense = tiny_models.BERT.build()
    model = slice_heads(dense, keep(dense, [2, 1, 2]))
    with pytest.raises(ValueError, match="`batches` is empty"):
        refit(model, dense, [])
    with pytest.raises(
        ValueError,
        match="`ridge` must be a finite number of at least 0, or None to choose it, got -1",
    ):
        refit(model, dense, BATCHES, ridge=-1)
    with pytest.raises(ValueError, match="`memory` must be a number of bytes, at least 0, got -1"):
        refit(model, dense, BATCHES, memory=-1)
    with pytest.raises(ValueError, match="same object"):
        refit(dense, dense, BATCHES)
    with pytest.raises(ValueError, match="pass the model that `model` was sliced from"):
        refit(model, tiny_models.BERT.build(num_hidden_layers=2), BATCHES)
    with pytest.raises(ValueError, match="2 heads of width 8 in `model` and 4 of 10 in"):
        refit(model, tiny_models.BERT.build(hidden_size=40), BATCHES)
    with pytest.raises(ValueError, match="4 heads of width 8 in `model` and 2 of 8"):
        refit(dense, model, BATCHES)
    with torch.no_grad():
        find_attention(dense).attention[1].out.get_parameter("weight")[0, 0] = torch.nan
    with pytest.raises(ValueError, match="block 'bert.encoder.layer.1.attention' hold NaN"):
        refit(model, dense, BATCHES)


def test_tokens_count_by_the_sensitivity_of_the_output() -> None:
    """Weighted least squares by hand, in the first and in the last block."""
    dense = tiny_models.BERT.build().double()
    attention, fidelity = find_attention(dense), fidelity_of(dense)
    for b, counts in ((0, [2, 4, 4]), (2, [4, 4, 2])):
        model = slice_heads(dense, keep(dense, counts))
        x, y, w = [], [], []
        for batch in BATCHES:
            heads, _, residual = through_block(model, find_attention(model).attention[b], batch)
            _, out, goal = through_block(dense, attention.attention[b], batch)
            real = batch["attention_mask"].bool()
            weights = [
                f.gradient.square().sum(dim=-1) for f in flows(attention, batch, fidelity, 0)[b]
            ]
            x.append(heads)
            y.append(out + goal - residual)
            w.append(torch.stack(weights).sum(dim=0)[real])
        refit(model, dense, BATCHES, ridge=0.0)
        root = torch.cat(w).sqrt()[:, None]
        rows = torch.cat([torch.cat(x), torch.ones(len(root), 1)], dim=1) * root
        expected = np.linalg.lstsq(rows.numpy(), (torch.cat(y) * root).numpy(), rcond=None)[0]
        fitted = out_weight(find_attention(model).attention[b]).detach().numpy()
        np.testing.assert_allclose(fitted, expected[:-1].T, atol=1e-6)


def test_sensitive_tokens_are_fitted_better_where_few_of_them_count() -> None:
    """A classifier reads one token of the last block, so a fit to all tokens spends itself on the rest."""
    dense = tiny_models.BERT.build()
    found = {}
    for weighting in Weighting:
        model = slice_heads(dense, keep(dense, [4, 4, 1]))
        refit(model, dense, BATCHES, weighting=weighting)
        found[weighting] = distance(dense, model)
    assert found[Weighting.SENSITIVITY] < 0.95 * found[Weighting.EQUAL]


def test_a_block_that_nothing_reads_stays_as_it_is() -> None:
    class Constant(ClassLogits):
        """A distance that no output changes."""

        def probes(self, output: Tensor, batch: Any, rngs: Any) -> list[Tensor]:
            return [torch.zeros_like(output)]

    dense = tiny_models.BERT.build()
    model = slice_heads(dense, keep(dense, [2, 0, 2]))
    before = {name: p.clone() for name, p in model.named_parameters()}
    refit(model, dense, BATCHES, weighting=TokenWeights(dense, fidelity=Constant()))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_weights_taken_once_serve_several_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_models.BERT.build()
    alone, first, second = (slice_heads(dense, keep(dense, [2, 1, 2])) for _ in range(3))
    refit(alone, dense, BATCHES)
    weights = TokenWeights(dense)
    refit(first, dense, BATCHES, weighting=weights)
    monkeypatch.setattr(
        "cahp_opt.torch.recovery.token_weights.flows", None
    )  # from here on they must be known
    refit(second, dense, BATCHES, weighting=weights)
    for a, b, c in zip(*(m.parameters() for m in (alone, first, second)), strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    other = tiny_models.BERT.build(seed=1)
    with pytest.raises(ValueError, match="`weighting` was taken on another model"):
        refit(slice_heads(other, keep(other, [2, 1, 2])), other, BATCHES, weighting=weights)
    first_batch = BATCHES[0]
    longer = [{name: functional.pad(value, (0, 1)) for name, value in first_batch.items()}]
    with pytest.raises(ValueError, match="`weighting` was taken on other batches: batch 0 held"):
        refit(slice_heads(dense, keep(dense, [2, 1, 2])), dense, longer, weighting=weights)


@pytest.mark.parametrize("examples", [0, 30])  # 30 cut the third batch
def test_calibration_hands_over_the_weights_of_all_batches(
    examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_models.BERT.build()
    alone, shared = (slice_heads(dense, keep(dense, [2, 1, 2])) for _ in range(2))
    refit(alone, dense, BATCHES)
    weights = TokenWeights(dense)
    calibrate(
        dense,
        BATCHES,
        sensitivity_examples=examples,
        gradient_examples=0,
        token_weights=weights,
    )
    monkeypatch.setattr("cahp_opt.torch.recovery.token_weights.flows", None)
    refit(shared, dense, BATCHES, weighting=weights)
    for a, b in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_unknown_output_is_told_with_the_ways_out() -> None:
    dense = tiny_models.BERT.build()
    model = slice_heads(dense, np.arange(12) > 2)
    dense.config.num_labels = 1
    dense.config.problem_type = "single_label_classification"
    with pytest.raises(ValueError, match=r"TokenWeights\(dense, fidelity=.*Weighting.EQUAL"):
        refit(model, dense, BATCHES)
    refit(model, dense, BATCHES, weighting=Weighting.EQUAL)
    refit(model, dense, BATCHES, weighting=TokenWeights(dense, fidelity=ClassLogits()))


def test_gradients_that_are_not_finite_are_told() -> None:
    class Steep(ClassLogits):
        """A distance with an infinite slope."""

        def probes(self, output: Tensor, batch: Any, rngs: Any) -> list[Tensor]:
            return [torch.full_like(output, torch.inf)]

    dense = tiny_models.BERT.build()
    model = slice_heads(dense, keep(dense, [2, 1, 2]))
    with pytest.raises(ValueError, match="gradients of the output of `dense` hold NaN or infinite"):
        refit(model, dense, BATCHES, weighting=TokenWeights(dense, fidelity=Steep()))


@pytest.mark.parametrize(
    "values", [[3, 2, 1], [1, 2, 3], [3, 1, 2], [2, 2, 2], [4, 3, 1, 1, 2], [1]]
)
def test_the_lowest_of_values_that_fall_and_rise_is_found_from_anywhere(values: list[int]) -> None:
    for start in range(len(values)):
        asked: list[int] = []

        def value(index: int, asked: list[int] = asked) -> float:
            asked.append(index)
            return values[index]

        assert refitting._lowest(value, len(values), start) == (
            int(np.argmin(values)),
            min(values),
        )
        assert len(asked) == len({*asked})
