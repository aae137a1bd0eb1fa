"""Methods that rank single heads and neurons: what matters is kept, within any budget, and slicing keeps just that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import Tensor

from cahp_opt import Budget, HeadSpace, LatencyTable
from cahp_opt.arrays import Bools
from cahp_opt.runs.method import Task
from cahp_opt.selection import Selection
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.torch import Prunable, find_prunable, head_mask
from cahp_opt.torch.evaluation.fidelity import fidelity_of
from cahp_opt.torch.methods import KPrune, Kwon, Magnitude
from cahp_opt.torch.methods.knowledge import knowledge
from cahp_opt.torch.methods.kwon import fisher_of
from cahp_opt.torch.methods.loss_slopes import in_parts, loss_slopes
from cahp_opt.torch.methods.magnitude import magnitudes
from cahp_opt.torch.methods.model_method import Evidence, ModelMethod
from cahp_opt.torch.methods.rearranging import rearranged
from cahp_opt.torch.methods.single_units import SingleUnits
from cahp_opt.torch.methods.unpruned_outputs import UnprunedOutputs
from cahp_opt.torch.slicing.slicing import slice_found

GROUP = 8
METHODS = (Kwon(), Magnitude(), KPrune(examples=4))


def blocks(name: str = "bert", *, heads: bool = True, neurons: bool = True) -> Prunable:
    """Those of a tiny model, with neurons in groups."""
    model = tiny_models.named(name).build(seed=1)
    group = GROUP if neurons else None
    return find_prunable(model, heads=heads, neurons=neurons, neuron_group=group)


def labelled(name: str = "bert") -> list[dict[str, Tensor]]:
    """Batches with labels, of texts or of tokens."""
    family = tiny_models.named(name)
    found = list[dict[str, Tensor]]()
    for seed in range(3):
        batch = family.batch(size=4, length=7, seed=seed, padded=seed > 0)
        if family.generates:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            batch["labels"] = torch.where(real, batch["input_ids"], -100)
        else:
            batch["labels"] = torch.tensor([0, 1, 1, 0])
        found.append(batch)
    return found


def chosen(
    method: ModelMethod,
    prunable: Prunable,
    budget: Budget,
    batches: Sequence[dict[str, Tensor]],
) -> Selection:
    """What a method chooses, within its budget."""
    task = Task(budget, labelled=True)
    method.check(task)
    stats = HeadStats(prunable.space, "", 0, 0)
    evidence = Evidence(prunable, stats, task, batches, fidelity_of(prunable.model))
    selection = method.chooser_on(evidence)(budget)
    assert budget.violation(selection.counts) is None
    assert selection.space.unordered() == prunable.space.unordered()
    return selection


def silence(prunable: Prunable, kept: Bools) -> None:
    """Set all weights of some single units to 0, those that are not in bool ``[single units]``."""
    single = SingleUnits(prunable).prunable
    with torch.no_grad():
        for block, where in zip(single, single.space.slices, strict=True):
            weak = np.flatnonzero(~kept[where])
            for piece, weight in zip(block.pieces, block.weights, strict=True):
                weight.movedim(piece.axis, 0)[torch.from_numpy(np.isin(piece.unit_of, weak))] = 0


def some(space: HeadSpace) -> Bools:
    """In every block two groups of neurons, and all units of attention but one."""
    rng, kept = np.random.default_rng(0), np.ones(space.n, dtype=np.bool_)
    for block, where in zip(space.blocks, space.slices, strict=True):
        weak = 1 if block.unit.of_attention else block.units - 2 * GROUP
        kept[where.start + rng.permutation(block.units)[:weak]] = False
    return kept


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-gqa", "vit"])
def test_what_is_kept_are_units_that_do_something(method: ModelMethod, name: str) -> None:
    prunable = blocks(name)
    units = SingleUnits(prunable)
    strong = some(units.space)
    silence(prunable, strong)
    attention = units.space.of_attention[units.space.block_of]
    heads = int((strong & attention).sum())
    budget = Budget.heads(prunable.space, heads) & Budget.neurons(prunable.space, 0.4)
    if isinstance(method, Kwon):  # an idle unit may stay for one whose loss makes up for another's
        method = Kwon(exchanges=False)
    selection = chosen(method, prunable, budget, labelled(name))
    kept = np.concatenate(units.kept(selection))
    np.testing.assert_array_equal(kept, strong)
    # All that the slice computes is what the single units compute under a mask.
    batch = labelled(name)[1]
    batch.pop("labels")
    small = slice_found(prunable.grouped(selection.space), selection)
    with head_mask(units.prunable, kept):
        masked = tiny_models.run(prunable.model, batch)
    torch.testing.assert_close(tiny_models.run(small.model, batch), masked)


def test_neurons_of_one_group_go_apart() -> None:
    """Every other neuron matters: whole groups as they stand would keep half of what does not."""
    prunable = blocks(heads=False)
    silence(prunable, np.arange(SingleUnits(prunable).space.n) % 2 == 0)
    selection = chosen(Magnitude(), prunable, Budget.neurons(prunable.space, 0.4), labelled())
    for block, where in zip(selection.space.blocks, selection.space.slices, strict=True):
        assert block.order is not None
        groups = np.array(block.order).reshape(block.units, GROUP)[selection.kept[where]]
        assert np.all(groups % 2 == 0)


def priced(space: HeadSpace) -> LatencyTable:
    """Units of attention cost 2 and groups 1, with a start for each block."""
    rates = [2.0 if block.unit.of_attention else 1.0 for block in space.blocks]
    counts = [np.arange(block.units + 1) for block in space.blocks]
    costs = tuple(r * k + 0.5 * (k > 0) for r, k in zip(rates, counts, strict=True))
    return LatencyTable(space, sum(float(c[-1]) for c in costs) + 1, costs)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("heads", "neurons"), [(True, True), (False, True), (True, False)])
def test_budgets_of_all_kinds_are_met(method: ModelMethod, heads: bool, neurons: bool) -> None:
    prunable, batches = blocks(heads=heads, neurons=neurons), labelled()
    space = prunable.space
    budget = Budget.latency(priced(space), 0.8, minimum=1)
    selection = chosen(method, prunable, budget, batches)
    table = budget.tables[0]
    fuller = [selection.counts + one for one in np.eye(len(space.blocks), dtype=np.int64)]
    assert not any(np.all(more <= space.units) and table.fits(more) for more in fuller)
    even = Budget(space, budget.tables, multiple_of=[2] * len(space.blocks), even=True)
    chosen(method, prunable, even, batches)


def test_the_first_step_of_kwon_is_the_largest_diagonal_within_the_budget() -> None:
    prunable, batches = blocks(neurons=False), labelled()
    fidelity = fidelity_of(prunable.model)
    slopes = loss_slopes(prunable, batches, fidelity)
    worth = np.concatenate([np.diagonal(fisher_of(own)) for own in slopes])
    expected = np.zeros(len(worth), dtype=np.bool_)
    expected[np.argsort(-worth)[:7]] = True
    parts = zip(slopes, np.split(expected, np.cumsum(prunable.space.units)[:-1]), strict=True)
    exchanged = np.concatenate([rearranged(fisher_of(own), kept) for own, kept in parts])
    selection = chosen(Kwon(), prunable, Budget.heads(prunable.space, 7), batches)
    np.testing.assert_array_equal(selection.kept, exchanged)
    assert selection.value == pytest.approx(worth[exchanged].sum())
    assert selection.bound == pytest.approx(worth[expected].sum())


def test_slopes_are_those_of_every_example_and_no_more_than_asked() -> None:
    prunable = SingleUnits(blocks()).prunable
    fidelity = fidelity_of(prunable.model)
    found = np.concatenate(loss_slopes(prunable, labelled(), fidelity, most=7), axis=1)
    assert found.shape == (7, prunable.space.n)
    batch = {key: value[2:3] for key, value in labelled()[1].items()}
    gates = torch.ones(prunable.space.n, requires_grad=True)
    with head_mask(prunable, gates):
        logits = prunable.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
    (expected,) = torch.autograd.grad(loss, gates)
    np.testing.assert_allclose(found[4 + 2], expected, rtol=1e-4, atol=1e-7)


def test_knowledge_is_what_its_docstring_states() -> None:
    units = SingleUnits(blocks())
    whole, space = units.prunable, units.space
    parts = list(in_parts(whole, labelled()))
    masks = np.random.default_rng(0).random(space.n) < 0.7
    fidelity = fidelity_of(whole.model)
    unpruned = UnprunedOutputs(whole, fidelity)
    found = knowledge(whole, unpruned, masks, parts, fidelity, temperature=2.0)
    behind = knowledge(whole, unpruned, masks, parts, fidelity, temperature=2.0, first=3)
    start = space.slices[3].start
    np.testing.assert_allclose(behind.predictive, found.predictive[start:], rtol=1e-5)
    np.testing.assert_allclose(behind.representational, found.representational[start:], rtol=1e-5)
    squares, written = np.zeros(space.n), np.zeros(space.n)
    tokens = 0
    for part in parts:
        inputs = {k: v for k, v in part.items() if k != "labels"}
        real = part.get("attention_mask", torch.ones_like(part["input_ids"])).bool()
        tokens += int(real.sum())
        for row in range(len(real)):
            one = {k: v[row : row + 1] if isinstance(v, Tensor) else v for k, v in inputs.items()}
            with torch.no_grad():
                dense = whole.model(**one).logits
            gates = torch.tensor(masks, dtype=torch.float32, requires_grad=True)
            with head_mask(whole, gates):
                logits = whole.model(**one).logits
            p, q = (one.div(2).log_softmax(dim=-1) for one in (dense, logits))
            distance = 4 * (p.exp() * (p - q)).sum()
            squares += torch.autograd.grad(distance, gates)[0].double().numpy() ** 2
        seen: dict[int, Tensor] = {}
        hooks = [
            block.out.register_forward_pre_hook(
                lambda m, args, b=b, seen=seen: seen.update({b: args[0]})
            )
            for b, block in enumerate(whole)
        ]
        with torch.no_grad(), head_mask(whole, masks):
            whole.model(**inputs)
        for hook in hooks:
            hook.remove()
        for b, (block, where) in enumerate(zip(whole, space.slices, strict=True)):
            weight = block.out.get_parameter("weight")
            for unit in range(block.units):
                own = torch.from_numpy(block.columns == unit)
                moved = seen[b][real][:, own] @ weight[:, own].T
                written[where.start + unit] += float(moved.detach().square().mean(dim=1).sum())
    np.testing.assert_allclose(found.predictive, squares / 2 / 12, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found.representational, written / tokens, rtol=1e-3)


def test_k_prune_repairs_as_it_goes_and_leaves_the_model() -> None:
    prunable, batches = blocks(), labelled()
    before = {name: value.clone() for name, value in prunable.model.state_dict().items()}
    budget = Budget.heads(prunable.space, 6) & Budget.neurons(prunable.space, 0.4)
    selection = chosen(KPrune(), prunable, budget, batches)
    plain = chosen(KPrune(ridge=1e12), prunable, budget, batches)  # which repairs nothing
    units = SingleUnits(prunable)
    mine, theirs = (np.concatenate(units.kept(found)) for found in (selection, plain))
    assert not np.array_equal(mine, theirs)
    after = prunable.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert selection.certificate.startswith("no bound")


def test_outputs_beyond_the_memory_are_computed_again() -> None:
    prunable, batch = blocks(), {k: v for k, v in labelled()[0].items() if k != "labels"}
    for memory, same in ((2**20, True), (0, False)):
        outputs = UnprunedOutputs(prunable, fidelity_of(prunable.model), memory)
        assert (outputs.of(batch, 0) is outputs.of(batch, 0)) is same


def test_parts_that_were_sliced_keep_their_groups() -> None:
    prunable = blocks()
    kept = np.ones(prunable.space.n, dtype=np.bool_)
    kept[prunable.space.slices[1].start] = False
    small = find_prunable(slice_found(prunable, kept).model, neuron_group=GROUP)
    units = SingleUnits(small)
    assert units.space.units.tolist() == [4, 4, 4, 40, 4, 40]
    for method in METHODS:
        selection = chosen(method, small, Budget.neurons(small.space, 0.5), labelled())
        assert selection.space.blocks[1] == small.space.blocks[1]
        sliced = slice_found(small.grouped(selection.space), selection)
        assert [block.width for block in sliced.feed_forward] == [
            GROUP * count for count in selection.counts[1::2]
        ]


def test_magnitudes_share_out_all_that_is_cut() -> None:
    prunable = find_prunable(tiny_models.BERT.build(bare=True), neuron_group=10)
    found = magnitudes(prunable)
    for block, where in zip(prunable, prunable.space.slices, strict=True):
        pairs = zip(block.pieces, block.weights, strict=True)
        whole = sum(
            float(w.detach().double().square().sum()) for p, w in pairs if min(p.unit_of) >= 0
        )
        assert found[where].sum() == pytest.approx(whole)
    first = prunable.feed_forward[0]
    out = first.out.get_parameter("weight").detach().double().square().sum(dim=0)
    rows = first.ins[0].get_parameter("weight").detach().double().square().sum(dim=1)
    bias = first.ins[0].get_parameter("bias").detach().double().square()
    own = (out + rows + bias).numpy()[first.columns == 1].sum()
    assert found[prunable.space.slices[1]][1] == pytest.approx(own)


def test_what_a_method_cannot_do_is_refused() -> None:
    prunable = blocks()
    with pytest.raises(ValueError, match="needs labelled texts"):
        Kwon().check(Task(Budget(prunable.space)))
    bare = find_prunable(tiny_models.BERT.build(bare=True), neuron_group=GROUP)
    with pytest.raises(ValueError, match="the gradient of a task loss is needed"):
        chosen(Kwon(), bare, Budget.heads(bare.space, 6), labelled())
    shared = blocks("albert")
    with pytest.raises(ValueError, match=r"times per pass.*`--method k-prune` has to repair"):
        KPrune().rehearse(shared, labelled()[0])
    KPrune().rehearse(bare, labelled()[0])
    with pytest.raises(ValueError, match="times per pass"):
        chosen(KPrune(), shared, Budget.heads(shared.space, 2), labelled())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Kwon, {"examples": 0}),
        (KPrune, {"examples": 0}),
        (KPrune, {"representational": np.nan}),
        (KPrune, {"attention": -1.0}),
        (KPrune, {"temperature": 0.0}),
    ],
)
def test_bad_options_are_refused(kind: type[Any], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)
