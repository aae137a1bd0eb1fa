"""Running a model only as far as one block, from where an earlier run left off."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor, nn

from cahp_opt.torch.blocks.finder import Prunable, PrunableBlock
from cahp_opt.torch.recovery.shortcuts import Shortcut, standing_in, taking
from cahp_opt.torch.running.batches import Batch, inputs_of, wide
from cahp_opt.torch.running.gates import capture_head_outputs


class _Reached(Exception):
    """Ends the forward pass where the run was meant to stop."""


class Behind(Enum):
    """Where the residual stream behind a linear layer is seen."""

    ATTENTION = "attention"
    """It is what enters the transformer layer, plus the linear layer's output."""
    LAYER = "layer"
    """It is what the transformer layer returns, or what the norm there reads."""
    OUTPUT = "output"
    """It is not seen, because the output is not added to it unchanged; the output stands for it."""


@dataclass(frozen=True)
class Place:
    """A linear layer that writes to the residual stream, and where the stream behind it is seen.

    Args:
        block: the name of its block; of a feed-forward part that is none, of the attention before it.
        layer: the number of its transformer layer in the walk.
        out: path of the linear layer in the model.
        behind: where the stream is seen.
        norm: path of the norm between the stream and what the transformer layer returns, in models that
            have it there.
    """

    block: str
    layer: int
    out: str
    behind: Behind
    norm: str | None = None

    @property
    def seen(self) -> object:
        """What tells the stream behind it, whatever block it is said to belong to."""
        return self.out, self.behind, self.norm


class Met(NamedTuple):
    """The activations of a walk at a place.

    Args:
        inputs: the input of the linear layer, ``[..., width]``.
        stream: the stream behind it, ``[..., hidden]``.
    """

    inputs: Tensor
    stream: Tensor


class _State(NamedTuple):
    """Where the run of a batch can resume.

    Args:
        layer: the number of the layer.
        residual: what enters it, ``[batch, tokens, hidden]``.
        inputs: of linear layers in it that were met, by path.
    """

    layer: int
    residual: Tensor
    inputs: dict[str, Tensor]

    @property
    def size(self) -> int:
        """The bytes of the inputs."""
        return sum(inputs.nbytes for inputs in self.inputs.values())


class LayerWalk:
    """Runs one model layer after layer over the same batches.

    A transformer layer reads the residual stream as its first input, before or after the norm alike, so
    a run can resume at any layer: earlier layers pass their input through, and the layer's first input
    is replaced by the remembered one. One residual stream per batch is remembered, up to a limit of
    memory; batches beyond it run from the start each time. So do layers that are not in one list
    (two towers, an encoder and a decoder), because others may read the output of skipped ones.

    What comes before a linear layer that was met, in the layer where a run resumes, does not run again where
    there is a shortcut past it and its inputs are remembered too. In between the linear layer itself may have
    changed, and nothing before it.

    Args:
        prunable: the blocks of the model, which is in evaluation mode.
        memory: bytes of residual streams to remember.

    Raises:
        ValueError: if two blocks of attention share a layer, or a block is in none.
    """

    def __init__(self, prunable: Prunable, memory: int) -> None:
        self.model = model = prunable.model
        own = [layer_of(model, block) for block in prunable]
        self.layers = tuple({id(layer): layer for layer in own}.values())
        """The transformer layers with blocks, in the order of the path."""
        numbers = {id(layer): number for number, layer in enumerate(self.layers)}
        self.layer_of = tuple(numbers[id(layer)] for layer in own)
        """The number of every block's layer."""
        if _share_a_layer(prunable, self.layer_of):
            raise ValueError(
                "`model` has layers with more than one attention block (such as cross-attention), which "
                "recovery cannot walk; it is for encoders and decoder-only models."
            )
        self.resumes = in_one_list(model, self.layers) is not None
        """Whether a run can begin at a layer other than the first."""
        self.shortcuts: Mapping[str, Shortcut] = {}
        """The shortcuts that may be taken, by the path of the linear layer."""
        self.room = 0
        """Bytes of inputs of linear layers to remember beside the residual streams."""
        self._memory = self._most = memory if self.resumes else 0
        self._remembered: dict[int, _State] = {}
        self._rest: dict[int, tuple[Any, ...] | None] = {}

    def meet(self, place: Place, batch: Batch, number: int, shift: Tensor | None = None) -> Met:
        """Run ``batch`` up to a place.

        Args:
            place: where to stop; must not be in an earlier layer than in the previous run of this batch.
            batch: the batch.
            number: the position of the batch in the data.
            shift: added to the output of the linear layer, ``[..., hidden]``; None for nothing.

        Raises:
            ValueError: if the model does not run the place on this batch.
        """
        visit = Visit((place,), number)
        with ExitStack() as stack:
            visit.listen(self, stack, shift)
            self._run(place.layer, batch, number)
        visit.check()
        self._remember(number, place.layer, visit.entered[place.layer])
        self._remember_inputs(number, place.out, visit.inputs[0])
        return Met(visit.inputs[0], visit.streams[0])

    def streams(
        self, places: Sequence[Place], batch: Batch, number: int, *, onward: bool
    ) -> tuple[list[Tensor], Callable[[], None]]:
        """The streams behind several places, of one run.

        Args:
            places: in the order of the path; of one layer if the walk resumes.
            batch: the batch.
            number: the position of the batch in the data.
            onward: whether the run goes on to the next layer.

        Returns:
            The streams, ``[..., hidden]`` each; and what to call once all of them were put to use, so that
            the next run resumes behind them.

        Raises:
            ValueError: if the model does not run one of the places on this batch.
        """
        visit, last = Visit(tuple(places), number), places[-1].layer
        if onward and self.resumes and last + 1 < len(self.layers):
            visit.onward = last + 1
        with ExitStack() as stack:
            visit.listen(self, stack)
            self._run(last, batch, number)
        visit.check()
        here, there = places[0].layer, visit.onward
        self._remember(number, here, visit.entered[here])

        def move_on() -> None:
            if there is not None and there in visit.entered:
                self._remember(number, there, visit.entered[there])

        return [visit.streams[index] for index in range(len(places))], move_on

    def outputs(
        self, layer: int, batch: Batch, number: int
    ) -> tuple[Tensor, list[tuple[nn.Module, Tensor]]]:
        """What a layer returns, ``[batch, tokens, hidden]``, and the modules in it that ran.

        Args:
            layer: the number of the layer.
            batch: the batch.
            number: the position of the batch in the data.

        Returns:
            The output, and the modules in the order in which they ended, as often as they ran, each with its
            output.
        """
        runs: list[tuple[nn.Module, Tensor]] = []
        found: list[Tensor] = []
        entered: list[Tensor] = []

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(first_input(module, args, kwargs))

        def listen(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                runs.append((module, output))

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            found.append(_stream_in(output))
            raise _Reached

        around = self.layers[layer]
        with ExitStack() as stack:
            hook = around.register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(hook.remove)
            for module in around.modules():
                if module is not around:
                    stack.callback(module.register_forward_hook(listen).remove)
            stack.callback(around.register_forward_hook(stop).remove)
            self._run(layer, batch, number)
        if not found:
            raise ValueError(
                f"`model` did not run its layer of {type(around).__name__} number {layer}"
            )
        self._remember(number, layer, entered[0])
        return found[0], runs

    def _run(self, layer: int, batch: Batch, number: int) -> None:
        """Run ``batch`` from its remembered stream until a hook ends the run, in ``layer`` or right behind
        it."""
        state = self._remembered.get(number)
        start = 0 if state is None else state.layer

        with ExitStack() as stack:
            if state is not None:
                residual = state.residual

                def resume(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                    return with_first_input(module, args, kwargs, residual)

                stack.enter_context(self._skipping(start))
                stack.enter_context(taking(self.shortcuts, state.inputs))
                hook = self.layers[start].register_forward_pre_hook(
                    resume, with_kwargs=True, prepend=True
                )
                stack.callback(hook.remove)
            for index in range(start, layer + 1):
                if index not in self._rest:  # learn once what a layer returns beside its output
                    learn = self.layers[index].register_forward_hook(
                        self._learner(index), prepend=True
                    )
                    stack.callback(learn.remove)
            with suppress(_Reached):
                self.model(**inputs_of(batch))

    @property
    def held(self) -> int:
        """The bytes of the residual streams that are remembered."""
        return self._most - self._memory

    def _remember(self, number: int, layer: int, residual: Tensor) -> None:
        before = self._remembered.get(number)
        if before is None:
            size = residual.nbytes
            if size > self._memory:
                return
            self._memory -= size
        elif before.layer == layer:
            return
        else:
            self.room += before.size
        self._remembered[number] = _State(layer, residual, {})

    def _remember_inputs(self, number: int, out: str, inputs: Tensor) -> None:
        state, size = self._remembered.get(number), inputs.nbytes
        if state is not None and out in self.shortcuts and size <= self.room:
            self.room -= size
            state.inputs[out] = inputs

    def _learner(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def learn(layer: nn.Module, args: Any, output: Any) -> None:
            self._rest[index] = None if isinstance(output, Tensor) else tuple(output[1:])

        return learn

    @contextmanager
    def _skipping(self, start: int) -> Generator[None, None, None]:
        """Layers before ``start`` return their input, in the form they return their output."""
        with ExitStack() as stack:
            for index in range(start):
                stack.enter_context(passing_through(self.layers[index], self._rest[index]))
            yield


@dataclass(eq=False)
class Visit:
    """What is seen in one run at some places.

    Args:
        places: in the order of the path.
        number: the position of the batch in the data.
        onward: the layer at whose beginning the run ends instead of behind the last place; None for there.
        ends: whether it ends at all.
        entered: the residual stream that enters a layer, ``[batch, tokens, hidden]``, by its number.
        inputs: the input of the linear layer, ``[..., width]``, by the number of the place; of a single place alone.
        streams: the stream behind it, ``[..., hidden]``, by the number of the place.
        versions: how often these had been written to.
        ran: the places whose linear layer ran.
    """

    places: tuple[Place, ...]
    number: int
    onward: int | None = None
    ends: bool = True
    entered: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    inputs: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    streams: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    versions: dict[int, int] = field(default_factory=dict[int, int])
    ran: set[int] = field(default_factory=set[int])

    def listen(self, walk: LayerWalk, stack: ExitStack, shift: Tensor | None = None) -> None:
        """Hook the places of a walk's model; ``shift``, ``[..., hidden]``, is added to the output of the first."""
        layers = [place.layer for place in self.places]
        if self.onward is not None:
            layers.append(self.onward)
        for layer in dict.fromkeys(layers):
            self._enter(walk.layers[layer], layer, stack)
        for index, place in enumerate(self.places):
            self._listen(walk, place, index, stack, None if index else shift)

    @property
    def complete(self) -> bool:
        """Whether the streams behind all places were seen, and are as they were then."""
        same = (_version(self.streams[n]) == version for n, version in self.versions.items())
        return len(self.streams) == len(self.places) and all(same)

    def check(self) -> None:
        """Refuse a run that left a place out.

        Raises:
            ValueError: naming it.
        """
        for index, place in enumerate(self.places):
            if index in self.streams and index in self.ran and place.layer in self.entered:
                continue
            if place.behind is Behind.ATTENTION:
                raise ValueError(
                    f"`model` did not run block {place.block!r} on this input; refit needs batches that "
                    "every block sees."
                )
            raise ValueError(
                f"`model` ran {place.out!r} on batches[0] but not on batches[{self.number}]; refit with "
                "`feed_forward=False`, or with batches that every layer sees."
            )

    def _enter(self, layer: nn.Module, number: int, stack: ExitStack) -> None:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.entered[number] = first_input(module, args, kwargs)
            if number == self.onward:
                raise _Reached

        hook = layer.register_forward_pre_hook(enter, with_kwargs=True)
        stack.callback(hook.remove)

    def _listen(
        self, walk: LayerWalk, place: Place, index: int, stack: ExitStack, shift: Tensor | None
    ) -> None:
        def at_out(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            self.ran.add(index)
            if len(self.places) == 1:
                self.inputs[index] = args[0] if args else next(iter(kwargs.values()))
            if place.behind is Behind.ATTENTION and place.layer in self.entered:
                self._see(index, _beside(place, self.entered[place.layer], output))
            elif place.behind is Behind.OUTPUT:
                self._see(index, output)
            return None if shift is None else output + shift.to(output)

        def at_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._see(index, args[0])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._see(index, _stream_in(output))

        out = walk.model.get_submodule(place.out)
        stack.callback(out.register_forward_hook(at_out, with_kwargs=True).remove)
        if place.behind is Behind.LAYER and place.norm is not None:
            norm = walk.model.get_submodule(place.norm)
            stack.callback(norm.register_forward_pre_hook(at_norm).remove)
        elif place.behind is Behind.LAYER:
            layer = walk.layers[place.layer]
            stack.callback(layer.register_forward_hook(leave).remove)

    def _see(self, index: int, stream: Tensor) -> None:
        if index in self.streams or index not in self.ran:
            return  # layers may share the norm or the layer that shows it
        self.streams[index] = stream
        self.versions[index] = _version(stream)
        if self.ends and self.onward is None and self.complete:
            raise _Reached


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 where PyTorch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _beside(place: Place, residual: Tensor, output: Tensor) -> Tensor:
    """The stream behind attention: what entered the layer, and the output of attention's last linear
    layer."""
    if output.shape != residual.shape:
        raise ValueError(
            f"block {place.block!r} writes rows {list(output.shape)} and its layer reads rows "
            f"{list(residual.shape)} (windows, perhaps), which recovery cannot match; this model is not "
            "supported."
        )
    return wide(residual) + wide(output)


def _stream_in(output: Any) -> Tensor:
    """The residual stream in what a layer returns."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def _share_a_layer(prunable: Prunable, layer_of: Sequence[int]) -> bool:
    """Whether two blocks of attention are in one layer."""
    own = [layer for layer, block in zip(layer_of, prunable, strict=True) if _attends(block)]
    return len({*own}) != len(own)


def _attends(block: PrunableBlock) -> bool:
    return block.unit.of_attention


@contextmanager
def passing_through(layer: nn.Module, rest: tuple[Any, ...] | None) -> Generator[None, None, None]:
    """A layer returns its first input, with ``rest`` behind it as it returns it beside its output; None for
    the bare tensor."""

    def pass_through(*args: Any, **kwargs: Any) -> Any:
        hidden = first_input(layer, args, kwargs)
        return hidden if rest is None else (hidden, *rest)

    with standing_in(layer, pass_through):
        yield


def check_runs_once(prunable: Prunable, batch: Batch) -> None:
    """Refuse a model that runs an attention block several times: a walk would only see the first run.

    Raises:
        ValueError: naming the block.
    """
    runs = [0] * len(prunable)

    def count(block: int, outputs: Tensor) -> None:
        del outputs
        runs[block] += 1

    with capture_head_outputs(prunable, count):
        prunable.model(**inputs_of(batch))
    for block, found in zip(prunable, runs, strict=True):
        if found > 1 and _attends(block):
            raise ValueError(
                f"`model` runs block {block.name!r} {found} times per pass, with the same weights, which "
                "one fit cannot serve; recovering this model is not supported."
            )


def layer_of(model: nn.Module, block: PrunableBlock) -> nn.Module:
    """The transformer layer around a block: its nearest ancestor that is an element of a ModuleList.

    Raises:
        ValueError: if there is none.
    """
    path = block.place.split(".")
    for end in range(len(path), 0, -1):
        if isinstance(model.get_submodule(".".join(path[: end - 1])), nn.ModuleList):
            return model.get_submodule(".".join(path[:end]))
    raise ValueError(
        f"block {block.name!r} is not in a list of layers, so its residual stream cannot be found; "
        "recovering this model is not supported."
    )


def in_one_list(model: nn.Module, layers: Sequence[nn.Module]) -> nn.ModuleList | None:
    """The list of modules that holds all of these; None if no single one does."""
    wanted = {id(layer) for layer in layers}
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((one for one in lists if wanted <= {id(layer) for layer in one}), None)


def first_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among a layer's arguments, ``[batch, tokens, hidden]``.

    Raises:
        ValueError: if the layer is called without it.
    """
    value = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(value, Tensor):
        raise ValueError(
            f"a layer of type {type(layer).__name__} was called without hidden states as its first "
            "argument; recovering this model is not supported."
        )
    return value


def with_first_input(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments with another residual stream."""
    first_input(layer, args, kwargs)
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": value}
