"""A forward for attention classes that reshape the heads' output to the width of their input.

CLIP and its relatives in older releases of transformers end in ``attn_output.reshape(batch, length,
embed_dim)`` with ``embed_dim`` from ``hidden_states.shape``, which holds only while all heads are there.
Newer releases say ``-1`` instead, and so does :class:`PlainForward`. It stands in for a class only if the
names, constants and parameters of the class' own forward are all on the lists below: code without any
other name cannot rotate, normalise, cache or drop anything. That leaves the order of the steps, which
the check of every slice compares.
"""

from __future__ import annotations

import dis
import inspect
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn
from transformers import modeling_utils

_FUNCTIONS: Any = modeling_utils.ALL_ATTENTION_FUNCTIONS

_WIDTH = "embed_dim"
"""The local variable that holds the width of the input."""

_FLASH = "is_flash_attention_requested"

_NAMES = {
    *("q_proj", "k_proj", "v_proj", "out_proj", "head_dim", "scale", "dropout", "training"),
    *("is_causal", "config", "_attn_implementation", "shape", "view", "transpose", "reshape"),
    *("contiguous", "ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"),
}
"""Names that the forward must read."""

_MORE_NAMES = {"num_heads", _FLASH}
"""Further names that it may read."""

_CONSTANTS = {None, -1, 0.0, 1, 2, "eager", "flash_attention_2"}

_OPTIONS = (
    ("is_causal", "scaling", "dropout"),
    ("is_causal", "scaling", "dropout", "output_attentions"),
)
"""The keyword arguments of its one call that has any, the attention function's."""

_PARAMETERS = {
    "hidden_states": inspect.Parameter.empty,
    "attention_mask": None,
    "causal_attention_mask": None,
    "output_attentions": False,
}
"""Its parameters with their defaults, in this order; the class may lack any but the first."""


class PlainForward:
    """The forward of an attention module whatever its width; set as its attribute ``forward``.

    Arguments and return value are those of the class' own forward; with all heads, so are the
    numbers. A class rather than a closure, so that models with it can be copied and pickled.

    Args:
        module: an attention module of a class for which :func:`takes_width_from_input` holds.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        function = _own_forward(type(module))
        assert function is not None
        self.eager = function.__globals__["eager_attention_forward"]
        asks = _FLASH in function.__code__.co_names
        self.is_flash = function.__globals__[_FLASH] if asks else _is_flash_attention_2
        given = inspect.signature(function).parameters
        self.names = tuple(name for name in _PARAMETERS if name in given)
        self.tells = _OPTIONS[1] in function.__code__.co_consts

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The return value of the class' own forward, for the same arguments."""
        # Keyword arguments that have no name of their own go unused in the class' forward too.
        return self._run(**dict(zip(self.names, args, strict=False)), **kwargs)

    def _run(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        causal_attention_mask: Tensor | None = None,
        output_attentions: bool | None = False,
        **unused: object,
    ) -> tuple[Tensor, Tensor | None]:
        module: Any = self.module
        shape = hidden_states.shape[:-1]
        projections = (module.q_proj, module.k_proj, module.v_proj)
        query, key, value = (
            projection(hidden_states).view(*shape, -1, module.head_dim).transpose(1, 2)
            for projection in projections
        )
        if "causal_attention_mask" in self.names:
            if self.is_flash(module.config):
                module.is_causal = causal_attention_mask is not None
            elif attention_mask is not None and causal_attention_mask is not None:
                attention_mask = attention_mask + causal_attention_mask
            elif causal_attention_mask is not None:
                attention_mask = causal_attention_mask
        attend: Any = self.eager
        if module.config._attn_implementation != "eager":
            attend = _FUNCTIONS[module.config._attn_implementation]
        output, weights = attend(
            module,
            query,
            key,
            value,
            attention_mask,
            is_causal=module.is_causal,
            scaling=module.scale,
            dropout=module.dropout if module.training else 0.0,
            **({"output_attentions": output_attentions} if self.tells else {}),
        )
        output = module.out_proj(output.reshape(*shape, -1).contiguous())
        if "output_attentions" in self.names and not output_attentions:
            weights = None
        return output, weights


def takes_width_from_input(cls: type) -> bool:
    """Whether instances of ``cls`` must have a :class:`PlainForward` once heads are cut, and can."""
    function = _own_forward(cls)
    if function is None:
        return False
    code, where = function.__code__, function.__globals__
    names = set(code.co_names)
    constants = set(code.co_consts) - {function.__doc__, *_CONSTANTS}
    return (
        _loads(code, _WIDTH)
        and names >= _NAMES
        and names <= _NAMES | _MORE_NAMES
        and not code.co_freevars
        and not code.co_cellvars
        and len(constants) == 1
        and constants <= set(_OPTIONS)
        and _has_known_parameters(function)
        and where.get("ALL_ATTENTION_FUNCTIONS") is _FUNCTIONS
        and isinstance(where.get("eager_attention_forward"), FunctionType)
        and (_FLASH not in names or isinstance(where.get(_FLASH), FunctionType))
    )


def _own_forward(cls: type) -> FunctionType | None:
    """The forward of ``cls``, if nothing is wrapped around it."""
    function: object = inspect.getattr_static(cls, "forward", None)
    if isinstance(function, FunctionType) and not hasattr(function, "__wrapped__"):
        return function
    return None


def _loads(code: CodeType, variable: str) -> bool:
    """Whether the code uses a local variable, rather than only setting it."""
    found = ((i.opname, i.argval) for i in dis.get_instructions(code))
    return any(
        variable in (value if isinstance(value, tuple) else (value,))
        for name, value in found
        if "LOAD_FAST" in name
    )


def _has_known_parameters(function: FunctionType) -> bool:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    rest = [p for p in parameters if p.kind is not p.POSITIONAL_OR_KEYWORD]
    used = any(_loads(function.__code__, p.name) for p in rest)
    return (
        "hidden_states" in named
        and list(named) == [name for name in _PARAMETERS if name in named]
        and all(default is _PARAMETERS[name] for name, default in named.items())
        and all(p.kind is p.VAR_KEYWORD for p in rest)
        and not used
    )


def _is_flash_attention_2(config: Any) -> bool:
    return bool(config._attn_implementation == "flash_attention_2")
