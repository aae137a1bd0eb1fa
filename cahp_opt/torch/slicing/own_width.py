"""A forward for attention classes that give the heads' output the width of their input.

CLIP and its relatives in older releases of transformers end in ``attn_output.reshape(batch, length,
embed_dim)`` with ``embed_dim`` from ``hidden_states.shape``, and so do many vision models and
encoder-decoders in newer ones. That holds only while all heads are there.
"""

from __future__ import annotations

from cahp_opt.torch.blocks.blocks import AttentionBlock, submodules
from cahp_opt.torch.blocks.layouts import HEADS, MAYBE_WIDTHS, WIDTHS
from cahp_opt.torch.slicing.rewritten_forward import forward_of
from cahp_opt.torch.slicing.width_rewriting import Words


def words_for_own_width(block: AttentionBlock) -> Words | None:
    """The words by which the forward of a block's module must be, and can be, rewritten; None if not."""
    owner, layout = block.module, block.layout
    path = next((path for path, m in submodules(owner) if m is block.out), "")
    words = Words(
        projections=tuple(p.path.split(".")[0] for p in layout.projections),
        out=path.split(".")[0],
        heads=(*layout.heads, *HEADS),
        widths=(*layout.widths, *WIDTHS, *MAYBE_WIDTHS),
    )
    return None if forward_of(type(owner), words) is None else words
