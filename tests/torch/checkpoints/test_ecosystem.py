"""Sliced models in the tools around transformers: generation, training, compilers, exporters, PEFT."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from tiny_models import Family, in_random_groups, outputs, sliced, to, uneven
from torch import Tensor, nn

from cahp_opt.torch.blocks.finder import UnsupportedModelError, find_attention, find_prunable
from cahp_opt.torch.checkpoints.checkpoint import from_pretrained, save_pretrained
from cahp_opt.torch.running.gates import head_mask
from cahp_opt.torch.slicing.slicing import selection_of, slice_heads
from cahp_opt.torch.slicing.verification import verify_slice

# Tools announce the end of each other's interfaces; that is not ours to fail on.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:fan_in_fan_out"
)


def chosen(names: str) -> pytest.MarkDecorator:
    """Parametrise over builds by their names."""
    wanted = [tiny.named(name) for name in names.split()]
    return pytest.mark.parametrize("family", wanted, ids=lambda f: f.name)


def close(found: nn.Module, expected: nn.Module, family: Family, tolerance: float = 0.0) -> None:
    mine, theirs = outputs(found, family.batch()), outputs(expected, family.batch())
    assert mine.keys() == theirs.keys() and mine
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance, msg=name)


# --- generation ---------------------------------------------------------------------------------

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "no-cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "chunked": {"prefill_chunk_size": 3},
    "lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.support("generate")
@chosen("gpt2 llama-gqa gemma3 bloom t5 bart")
@pytest.mark.parametrize("empty", [None, 0])
def test_every_way_of_generating(family: Family, empty: int | None) -> None:
    """A static cache too: it is sized by the first keys it sees, block by block."""
    # Of heads and neurons, and a seed whose tokens are not all the same.
    model: Any = family.build(seed=6).double()
    both = in_random_groups(find_prunable(model))
    kept = uneven(both.space, empty=empty)
    if empty is not None:
        kept[both.space.slices[both.blocks.index(both.feed_forward[empty])]] = False
    small: Any = slice_heads(both, kept, batch=to(family.batch(), torch.float64))
    fixed = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    several = family.prompt()
    single = {name: value[:1] for name, value in family.prompt(padded=False).items()}
    dense = model.generate(**several, **fixed)
    for name, options in STRATEGIES.items():
        prompt = single if name in ("chunked", "lookup") else several
        if prompt is single and not generates(model, {**prompt, **fixed, **options}):
            continue  # not every release of transformers has these, nor for every kind of model
        with head_mask(both, kept):
            expected = model.generate(**prompt, **fixed, **options)
        found = small.generate(**prompt, **fixed, **options)
        assert torch.equal(found, expected), name
        assert prompt is single or name == "beam" or not torch.equal(found, dense), name


def generates(model: Any, options: dict[str, Any]) -> bool:
    """Whether the unpruned model can generate in this way."""
    try:
        model.generate(**options)
    except (ValueError, TypeError, IndexError):
        return False
    return True


def test_caches_sized_by_the_configuration_end_in_an_error() -> None:
    """A static cache filled in chunks is sized before the first key, by the unpruned configuration."""
    small = sliced(tiny.LLAMA_GQA)
    prompt = {name: value[:1] for name, value in tiny.batch(padded=False).items()}
    with pytest.raises(RuntimeError, match="same slice shapes"):
        small.generate(
            **prompt, max_new_tokens=3, cache_implementation="static", prefill_chunk_size=3
        )


def test_a_static_cache_of_the_unpruned_model_is_not_used_again() -> None:
    model: Any = tiny.LLAMA_GQA.build()
    options = {"do_sample": False, "max_new_tokens": 3, "cache_implementation": "static"}
    model.generate(**tiny.batch(padded=False), **options)
    kept = uneven(find_attention(model).space)
    copied: Any = slice_heads(model, kept)
    expected = copied.generate(**tiny.batch(padded=False), **options)
    slice_heads(model, kept, in_place=True)
    assert torch.equal(model.generate(**tiny.batch(padded=False), **options), expected)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.support("training")
@chosen("bert llama-gqa gpt2 t5 vit")
def test_gradient_checkpointing_gives_the_same_gradients(family: Family) -> None:
    plain = sliced(family, empty=1, neurons=True)
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for model in (plain, saving):
        output: Tensor = model.train()(**family.batch())[0]
        torch.autograd.backward(output.square().mean())
    pairs = zip(plain.named_parameters(), saving.named_parameters(), strict=True)
    for (name, a), (_, b) in pairs:
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert any(p.grad is not None and bool(p.grad.any()) for p in plain.parameters())


@chosen("bert llama-gqa")
def test_the_trainer_fine_tunes_what_is_left(family: Family, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    small = sliced(family, empty=1)
    before = copy.deepcopy(small)
    batch = tiny.batch(size=4, padded=False)
    labels = batch["input_ids"] if family.generates else torch.arange(4) % 3
    rows = [{**{k: v[i] for k, v in batch.items()}, "labels": labels[i]} for i in range(4)]
    arguments: Any = transformers.TrainingArguments(
        output_dir=str(tmp_path / "runs"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        gradient_checkpointing=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    data: Any = rows
    transformers.Trainer(model=small, args=arguments, train_dataset=data).train()
    changed = {
        name
        for (name, a), (_, b) in zip(
            small.named_parameters(), before.named_parameters(), strict=True
        )
        if not torch.equal(a, b)
    }
    frozen = {name for name, p in before.named_parameters() if not p.requires_grad}
    assert frozen and changed and not frozen & changed
    save_pretrained(small, tmp_path / "tuned")
    loaded = from_pretrained(tmp_path / "tuned")
    close(loaded, small.eval(), family)


# --- compilers and exporters ------------------------------------------------------------------------

COMPILED = "llama-gqa distilbert mpnet gpt2 qwen3 phi3 bloom bart t5 vit"


FEW = "bert llama-gqa"
"""Tracing takes seconds per model, so the others wait for the slow suite."""


def test_layers_compiled_one_by_one_need_room_for_every_count_of_heads() -> None:
    """As the README has it, with three layers and a limit of two."""
    model = tiny.BERT.build(bare=True)
    kept = np.concatenate([np.arange(4) <= layer for layer in range(3)])
    small, batch = slice_heads(model, kept), tiny.batch()
    expected = tiny.run(small, batch)
    for layer in small.encoder.layer:
        layer.compile(backend="eager")
    dynamo: Any = importlib.import_module("torch._dynamo")
    name = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"
    options = {f"fail_on_{name}_hit": True}
    torch.compiler.reset()
    with dynamo.config.patch(**{name: 2}, **options), pytest.raises(Exception, match=name):
        tiny.run(small, batch)
    torch.compiler.reset()
    with dynamo.config.patch(**{name: 3}, **options):
        torch.testing.assert_close(tiny.run(small, batch), expected)
    torch.compiler.reset()


def compile_and_compare(family: Family, backend: str, tolerance: float) -> None:
    """Of a model cut in heads and neurons."""
    small = sliced(family, neurons=True)
    torch.compiler.reset()
    compiled: Any = torch.compile(small, fullgraph=True, backend=backend)
    with torch.no_grad():
        found = compiled(**family.batch())[0]
        expected = small(**family.batch())[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    torch.compiler.reset()


@pytest.mark.support("compile")
@chosen("bert")
def test_compiles_in_one_graph(family: Family) -> None:
    compile_and_compare(family, "eager", 1e-6)


def test_a_compiled_decoding_step() -> None:
    """Of a model cut in heads and neurons, after a prompt that has filled its cache."""
    small = sliced(tiny.LLAMA_GQA, neurons=True)
    ids = tiny.batch(padded=False)["input_ids"]
    torch.compiler.reset()
    compiled: Any = torch.compile(small, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = small(input_ids=ids)[0]
        cache = small(input_ids=ids[:, :-2], use_cache=True).past_key_values
        for place in (-2, -1):
            step = slice(place, place + 1 or None)
            found = compiled(input_ids=ids[:, step], past_key_values=cache, use_cache=True)[0]
            torch.testing.assert_close(found, expected[:, step], rtol=0, atol=1e-5)
    assert cache.get_seq_length() == ids.shape[1]
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.support("compile")
@chosen(COMPILED)
def test_more_models_compile_in_one_graph(family: Family) -> None:
    compile_and_compare(family, "eager", 1e-6)


@pytest.mark.slow
@chosen("bert llama-gqa t5")
def test_compiles_with_inductor(family: Family) -> None:
    compile_and_compare(family, "inductor", 1e-4)


@pytest.mark.support("export")
@chosen(FEW)
def test_exports(family: Family) -> None:
    export_and_compare(family)


@pytest.mark.slow
@pytest.mark.support("export")
@chosen(COMPILED)
def test_more_models_export(family: Family) -> None:
    export_and_compare(family)


def export_and_compare(family: Family) -> None:
    """Of a model cut in heads and neurons."""
    small = sliced(family, neurons=True)
    batch = family.batch()
    keywords = {**batch, **({"use_cache": False} if family.generates else {})}
    with torch.no_grad():
        program: Any = torch.export.export(small, (), keywords)
        found = program.module()(**keywords)[0]
    torch.testing.assert_close(found, small(**keywords)[0], rtol=0, atol=1e-5)


# --- adapters -----------------------------------------------------------------------------------

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_adapters(model: nn.Module, **options: Any) -> Any:
    """The model with LoRA adapters that do something."""
    peft: Any = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": 3, "target_modules": TARGETS, **options})
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return wrapped.eval()


def test_adapters_on_a_sliced_model_are_saved_and_loaded(tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft")
    small = sliced(tiny.LLAMA_GQA, neurons=True)
    save_pretrained(small, tmp_path / "base")
    tuned = with_adapters(small)
    tuned.save_pretrained(str(tmp_path / "adapters"))
    base = from_pretrained(tmp_path / "base")
    plain = outputs(base, tiny.batch())["logits"]
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapters")).eval()
    found = outputs(loaded, tiny.batch())["logits"]
    assert torch.equal(found, outputs(tuned, tiny.batch())["logits"])
    assert not torch.allclose(found, plain, atol=1e-2)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(outputs(merged, tiny.batch())["logits"], found, rtol=0, atol=1e-4)


@pytest.mark.support("lora")
@chosen("llama-gqa bert gpt2")
@pytest.mark.parametrize("empty", [None, 0, 1])
def test_models_with_adapters_are_sliced(family: Family, empty: int | None, tmp_path: Path) -> None:
    """In heads and neurons; block 1 is a feed-forward part."""
    targets = {"bert": ["query", "key", "value", "dense"], "gpt2": ["c_attn", "c_proj", "c_fc"]}
    names = targets.get(family.name, TARGETS)
    tuned = with_adapters(family.build().double(), target_modules=names)
    prunable = tiny.in_random_groups(find_prunable(tuned))
    kept = uneven(prunable.space, empty=empty)
    small: Any = slice_heads(prunable, kept, batch=family.batch())
    assert verify_slice(prunable, small, kept, family.batch()) <= 1e-9
    told = selection_of(small)
    assert told is not None and told.space == prunable.space
    # Merging before slicing gives the same model as merging after it.
    plain = find_prunable(copy.deepcopy(tuned).merge_and_unload()).grouped(prunable.space)
    merged = slice_heads(plain, kept, batch=family.batch())
    close(small.merge_and_unload(), merged, family, 1e-9)
    save_pretrained(merged, tmp_path / "merged")
    assert selection_of(from_pretrained(tmp_path / "merged")) is not None


def test_adapters_with_magnitudes_and_merged_ones_are_refused() -> None:
    dora = with_adapters(tiny.LLAMA_GQA.build(), use_dora=True)
    with pytest.raises(UnsupportedModelError, match=r"(?i)dora"):
        find_attention(dora)
    merged = with_adapters(tiny.LLAMA_GQA.build())
    merged.merge_adapter()
    with pytest.raises(UnsupportedModelError, match=r"(?i)merged"):
        find_attention(merged)


# --- placement and refusals ----------------------------------------------------------------------------


def test_a_dispatched_model_is_sliced() -> None:
    accelerate: Any = pytest.importorskip("accelerate")
    model = tiny.LLAMA_GQA.build()
    prunable = find_prunable(model)
    kept = uneven(prunable.space, empty=0)
    expected = slice_heads(prunable, kept)
    dispatched = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    small = slice_heads(find_prunable(dispatched), kept, in_place=True)
    close(small, expected, tiny.LLAMA_GQA)


def test_offloaded_weights_are_refused(tmp_path: Path) -> None:
    accelerate: Any = pytest.importorskip("accelerate")
    for place, options in (
        (accelerate.cpu_offload, {}),
        (accelerate.disk_offload, {"offload_dir": str(tmp_path)}),
    ):
        model = place(tiny.LLAMA_GQA.build(), execution_device="cpu", **options)
        with pytest.raises(UnsupportedModelError, match="not in memory"):
            slice_heads(model, uneven(find_attention(model).space))


@pytest.mark.filterwarnings("ignore")  # torch announces the end of its own quantisation
def test_quantised_weights_are_refused() -> None:
    quantise: Any = torch.ao.quantization.quantize_dynamic
    model = quantise(tiny.BERT.build(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedModelError, match=r"attention"):
        find_attention(model)


def test_sharded_weights_are_refused(tmp_path: Path) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = tiny.LLAMA_GQA.build()
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        projection: Any = find_attention(model).attention[0].out
        projection.weight = nn.Parameter(distribute_tensor(projection.weight, mesh, [Shard(1)]))
        with pytest.raises(UnsupportedModelError, match=r"o_proj"):
            find_attention(model)
    finally:
        destroy_process_group()


def test_norms_over_all_heads_are_refused() -> None:
    config = transformers.Olmo2Config(
        vocab_size=tiny.VOCABULARY,
        hidden_size=tiny.HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=tiny.HEADS,
        intermediate_size=40,
    )
    model = transformers.Olmo2ForCausalLM(config)
    with pytest.raises(UnsupportedModelError, match=r"q_norm.*ties the heads together"):
        find_attention(model)
