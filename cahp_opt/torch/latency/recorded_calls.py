"""Calls of modules inside a model, recorded in one run, so that they can be made again alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

from torch import nn

from cahp_opt.costs.provenance import Execution, Phase
from cahp_opt.torch.latency.cache import caches_in, snapshot
from cahp_opt.torch.latency.execution import compiled, run_through
from cahp_opt.torch.latency.model_times import whole_model
from cahp_opt.torch.latency.stopwatch import Work
from cahp_opt.torch.running.batches import Batch
from cahp_opt.torch.slicing.ghost_layers import Onlooker

Key = TypeVar("Key")


class Call(NamedTuple):
    """The arguments of a module's call, how to restore the caches in them, and what must stay alive."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    restore: tuple[Callable[[], None], ...]
    keep: object = None


def record(
    model: nn.Module,
    modules: Mapping[Key, nn.Module],
    batch: Batch,
    phase: Phase,
    execution: Execution,
) -> tuple[dict[Key, Call], list[Key]]:
    """By name the last call of every module in one run of the model, and the names in the order of all calls.

    Args:
        model: in evaluation mode.
        modules: of the model, by name; those that do not run are missing in what is returned.
        batch: prepared for the model.
        phase: what is run.
        execution: how the model will be run.
    """
    calls, order = dict[Key, Call](), list[Key]()

    def listener(name: Key) -> Onlooker:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caches = caches_in([*args, *kwargs.values()])
            calls[name] = Call(args, kwargs, tuple(snapshot(cache) for cache in caches))
            order.append(name)

        return Onlooker(listen)

    def listen_to_all() -> None:
        for name, module in modules.items():
            hook = module.register_forward_pre_hook(listener(name), with_kwargs=True, prepend=True)
            stack.callback(hook.remove)

    with ExitStack() as stack:
        keep = run_through(
            whole_model(model, batch, phase, Execution.EAGER), execution, listen_to_all
        )
    return {name: call._replace(keep=keep) for name, call in calls.items()}, order


def again(calls: Sequence[tuple[nn.Module, Call]], execution: Execution) -> Work:
    """The work of making recorded calls once more, one after the other."""
    runs = [(compiled(module, execution), call) for module, call in calls]
    steps = [step for _, call in calls for step in call.restore]

    def run() -> None:
        for module, call in runs:
            module(*call.args, **call.kwargs)

    def restore() -> None:
        for step in steps:
            step()

    return Work(run, restore if steps else None, alone=True)
