"""`torch.ops.deft.paged_tree_attention`: the same call as an operator that ``torch.compile`` goes through.

It has a fake kernel, so shapes are known without running it, and is opaque to the compiler. CPU tensors only: on a GPU
it is refused by name, as its kernels read the library's own pages.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from torch import library

import deft


@library.custom_op("deft::paged_tree_attention", mutates_args=())
def paged_tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    lens: torch.Tensor,
    queries: Optional[List[int]] = None,
    masks: Optional[torch.Tensor] = None,
    order: str = "NHD",
    scale: float = 0.0,
    soft_cap: float = 0.0,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """``(out, lse)``; see `deft.attend`. ``masks`` are int64 words, 0 for a scale or a cap is the default."""
    words = None if masks is None else masks.numpy().view("uint64")
    return deft.paged_tree_attention(
        q.contiguous(), k_cache, v_cache, block_tables, lens, queries=queries, masks=words, order=order, scale=scale,
        soft_cap=soft_cap, lse=True,
    )


@paged_tree_attention.register_fake
def _(q, k_cache, v_cache, block_tables, lens, queries=None, masks=None, order="NHD", scale=0.0, soft_cap=0.0):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
