"""Torch's own attention module, made explicit, so that its heads can be gated and removed.

``nn.MultiheadAttention`` reads the weights of its output projection without calling it, so hooks on
it never fire. In evaluation mode ``nn.TransformerEncoderLayer`` passes the weights to a fused
kernel without calling the attention module. And the head width is computed from the input's. So the
module is given another class, with the same parameters under the same names and the same results.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from cahp_opt.torch.blocks.blocks import submodules
from cahp_opt.torch.blocks.finder import UnsupportedModelError


class ExplicitAttention(nn.Module):
    """``nn.MultiheadAttention`` with an output projection that is really called.

    Made by :func:`explicit_attention` only. The rows of ``in_proj_weight`` and ``in_proj_bias`` are
    all queries, then all keys, then all values; head ``h`` owns the rows ``[h*head_dim,
    (h+1)*head_dim)`` of each, the same columns of ``out_proj``, and the same entries of the last axis
    of ``bias_k`` and ``bias_v``. ``forward`` goes by ``num_heads``, ``head_dim`` and the shapes of the
    weights, so heads can be cut; ``embed_dim`` is the width of the queries and stays.

    ``out_proj`` is called with ``[batch, positions, num_heads * head_dim]`` whatever ``batch_first``
    says, with a batch of 1 for inputs without one.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    in_proj_weight: nn.Parameter | None
    q_proj_weight: nn.Parameter | None
    k_proj_weight: nn.Parameter | None
    v_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None
    out_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``, but nested tensors are refused.

        The output lies in memory batch first, so a dropout after it draws other random numbers.

        Args:
            query: ``[batch, positions, embed_dim]``, or ``[positions, batch, embed_dim]`` unless
                ``batch_first``, or ``[positions, embed_dim]``.
            key: of the same layout; its width is that of the key weights.
            value: of the same layout and as long as ``key``.
            key_padding_mask: ``[batch, keys]``, True or added where keys are padding.
            need_weights: whether to return the attention weights, which is slower.
            attn_mask: ``[positions, keys]`` or ``[batch * num_heads, positions, keys]``, True where
                attention is not allowed, or added to the scores.
            average_attn_weights: whether the weights returned are the mean over heads.
            is_causal: a hint that ``attn_mask`` is the causal mask.

        Returns:
            The output, laid out as ``query``, and the weights ``[batch, positions, keys]`` (or
            ``[batch, num_heads, positions, keys]``), or None.

        Raises:
            ValueError: if an input is nested, a mask is neither boolean nor floating, or of a wrong
                shape, or ``is_causal`` comes without ``attn_mask``.
        """
        batched = query.dim() == 3
        q, k, v = self._projected(query, key, value, batched)
        mask = _additive(attn_mask, "attn_mask", q.dtype)
        padding = _additive(key_padding_mask, "key_padding_mask", q.dtype)
        if is_causal and mask is None:
            raise ValueError(
                "`is_causal` is a hint about `attn_mask`; pass the causal mask with it."
            )
        # As in the stock module, the hint counts only where the mask would be all there is to apply.
        causal = is_causal and padding is None and not need_weights
        mask = None if causal else self._merged(mask, padding, q, k)

        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(len(v), 1, -1)], dim=1)
        if self.add_zero_attn:
            k = torch.cat([k, k.new_zeros(len(k), 1, k.shape[2])], dim=1)
            v = torch.cat([v, v.new_zeros(len(v), 1, v.shape[2])], dim=1)
        if mask is not None:  # the added positions are open to every query
            mask = functional.pad(mask, (0, k.shape[1] - mask.shape[-1]))

        q, k, v = self._by_head(q), self._by_head(k), self._by_head(v)
        rate = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, rate) if rate else weights
            heads = weights @ v
        else:
            heads = functional.scaled_dot_product_attention(q, k, v, mask, rate, causal)
        output: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))

        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _by_head(self, x: Tensor) -> Tensor:
        """``[batch, num_heads, positions, head_dim]``."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor, batched: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``[batch, positions, num_heads * head_dim]``."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError("`query`, `key` and `value` must not be nested tensors; pad them.")

        def turned(x: Tensor) -> Tensor:
            return x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)

        packed, bias = self.in_proj_weight, self.in_proj_bias
        if packed is not None and query is key and key is value:
            q, k, v = functional.linear(turned(query), packed, bias).chunk(3, dim=-1)
            return q, k, v
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if packed is None
            else packed.chunk(3)
        )
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (
            functional.linear(turned(x), w, b)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
            if w is not None
        )
        return q, k, v

    def _merged(
        self, mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Both masks as one that broadcasts to ``[batch, num_heads, positions, keys]``."""
        size, positions, keys = q.shape[0], q.shape[1], k.shape[1]
        if mask is not None:
            shapes = ((positions, keys), (size * self.num_heads, positions, keys))
            if tuple(mask.shape) not in shapes:
                raise ValueError(
                    f"`attn_mask` has shape {list(mask.shape)}; it must be {list(shapes[0])}, or "
                    f"{list(shapes[1])} for {size} examples with {self.num_heads} heads."
                )
            mask = mask.view(-1, self.num_heads if mask.dim() == 3 else 1, positions, keys)
        if padding is not None:
            if padding.numel() != size * keys:
                raise ValueError(
                    f"`key_padding_mask` has shape {list(padding.shape)}; it must be {[size, keys]}."
                )
            padding = padding.view(size, 1, 1, keys)
            mask = padding if mask is None else mask + padding
        return mask


def explicit_attention(model: nn.Module) -> int:
    """Make every ``nn.MultiheadAttention`` of a model explicit, in place.

    The modules stay where they are and keep their parameters, hooks and mode; only their class
    changes, and so does that of their output projection, to a plain ``nn.Linear``. Checkpoints fit
    before and after. ``nn.TransformerEncoderLayer`` no longer takes its fused path around them, nor
    ``nn.TransformerEncoder`` the one with nested tensors; with that one, outputs at padding were
    zeros, and now they are what the layers compute there.

    Args:
        model: the model; it may be on the meta device. Subclasses of ``nn.MultiheadAttention`` are
            left alone, because they may compute something else.

    Returns:
        The number of modules that were changed; 0 for a model without any, or a second time.

    Raises:
        UnsupportedModelError: if the output projection of one was replaced or wrapped; nothing is
            changed then.
    """
    modules = submodules(model)
    # Untyped, because the class of an object changes here.
    found: list[tuple[str, Any]] = [(n, m) for n, m in modules if type(m) is nn.MultiheadAttention]
    for name, module in found:
        out = cast("type[nn.Module]", type(module.out_proj))
        if out not in (nn.Linear, NonDynamicallyQuantizableLinear):
            raise UnsupportedModelError(
                f"{name or 'the model itself'} (MultiheadAttention) has an output projection of type "
                f"{out.__name__}, and only a plain nn.Linear can be made explicit; merge adapters and "
                "remove parametrisations first."
            )
    for _, module in found:
        module.out_proj.__class__ = nn.Linear
        module.__class__ = ExplicitAttention
        # The layer's fused path asks for this, and would read the weights past the module.
        module._qkv_same_embed_dim = False
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(m, ExplicitAttention) for m in module.modules()
        ):
            module.use_nested_tensor = False
    return len(found)


def _additive(mask: Tensor | None, name: str, dtype: torch.dtype) -> Tensor | None:
    """The mask as numbers to add to the scores."""
    if mask is None or mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise ValueError(f"`{name}` must be boolean or floating, got {mask.dtype}.")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
