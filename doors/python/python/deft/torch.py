"""The calls as operators of torch, which ``torch.compile(fullgraph=True)`` goes through and CUDA graphs capture.

They have fake kernels, so shapes are known without running them, and are opaque to the compiler.
"""

from __future__ import annotations

import weakref
from typing import List, Optional, Tuple

import torch
from torch import library

import deft

_plans: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def handle(plan: deft.Plan) -> int:
    """A number for a plan, as operators take it, while the plan lives."""
    _plans[id(plan)] = plan
    return id(plan)


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
    """``(out, lse)``; see `deft.attend`. ``masks`` are int64 words, 0 for a scale or a cap is the default. Tables on a GPU are
    copied to the host, which waits for it: not in a CUDA graph."""
    words = None if masks is None else masks.cpu().numpy().view("uint64")
    return deft.paged_tree_attention(
        q.contiguous(), k_cache, v_cache, block_tables, lens, queries=queries, masks=words, order=order, scale=scale,
        soft_cap=soft_cap, lse=True,
    )


@library.custom_op("deft::attend", mutates_args=())
def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: int,
    order: str = "NHD",
    scale: float = 0.0,
    soft_cap: float = 0.0,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """``(out, lse)`` of a plan by its `handle`. What a CUDA graph captured of it follows the plan: between replays update it
    and call `deft.Plan.upload`."""
    if plan not in _plans:
        raise ValueError(f"plan is {plan}; it must be the handle of a plan that lives")
    return deft.attend(
        _plans[plan], q.contiguous(), k_cache, v_cache, order=order, scale=scale, soft_cap=soft_cap, lse=True
    )


def _fake(q, *arguments, **options):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


paged_tree_attention.register_fake(_fake)
attend.register_fake(_fake)
