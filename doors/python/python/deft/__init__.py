"""Tree attention for LLM decoding: queries that share a prefix read its keys and values once.

Arrays are numpy's, torch's, or anybody's with ``__dlpack__``, on the CPU or a GPU. numpy has no bfloat16: ``uint16`` arrays
hold its bits where ``dtype="bfloat16"`` is said. On a GPU work is enqueued on the current stream of torch, or of cupy, or
else on the default stream. What is refused is a ``ValueError`` that names the argument, its value and the limit.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Sequence

import numpy as np

from . import _deft
from ._deft import Batch, __version__

__all__ = [
    "Batch",
    "Plan",
    "TreeCache",
    "__version__",
    "ancestor_masks",
    "attend",
    "paged_tree_attention",
    "verify",
]

Array = Any
ORDERS = {"NHD": None, "HND": (0, 2, 1, 3)}


def _dtype(array: Array, dtype: str | None) -> str:
    return dtype or str(array.dtype).rpartition(".")[2]


def _i32(values: Array | None) -> Array | None:
    """Contiguous int32 on the host, of any list or array."""
    if values is None:
        return None
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    values = np.asarray(values)
    narrow = np.ascontiguousarray(values, dtype=np.int32)
    if not np.array_equal(narrow, values):
        raise ValueError("block_tables, lens and queries must be whole numbers of 32 bits")
    # DLPack takes no array that is read-only.
    return narrow if narrow.flags.writeable else narrow.copy()


def _like(array: Array, shape: Sequence[int], lse: bool = False) -> Array:
    """An uninitialised array of the library and the device that `array` is of."""
    if hasattr(array, "new_empty"):
        import torch

        return array.new_empty(tuple(shape), dtype=torch.float32 if lse else array.dtype)
    library = np if _gpu(array) < 0 else array.__array_namespace__()
    return library.empty(tuple(shape), dtype=library.float32 if lse else array.dtype)


def _gpu(array: Array) -> int:
    """The number of the GPU that an array is on, -1 for the CPU."""
    kind, number = array.__dlpack_device__() if hasattr(array, "__dlpack_device__") else (1, 0)
    return number if kind == 2 else -1


def _stream(gpu: int, array: Array | None = None) -> int:
    """The current stream for GPU `gpu` of the array's library, or of the one that is in use."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if gpu < 0:
        return 0
    of_cupy = type(array).__module__.startswith("cupy")
    if torch is not None and torch.cuda.is_initialized() and not of_cupy:
        return torch.cuda.current_stream(gpu).cuda_stream
    return 0 if cupy is None else cupy.cuda.get_current_stream().ptr


def _in_order(array: Array, order: str) -> Array:
    """The axes as [blocks, page_size, kv_heads, head_dim], by strides."""
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; it must be 'NHD' or 'HND'")
    if len(array.shape) != 4:
        raise ValueError(f"a paged cache has {len(array.shape)} dimensions; it must have 4")
    axes = ORDERS[order]
    if axes is None:
        return array
    return array.permute(axes) if hasattr(array, "permute") else array.transpose(axes)


def ancestor_masks(parents: Sequence[Sequence[int]]) -> np.ndarray:
    """Packed masks, uint64 ``[rows, words]``, of a draft tree a sequence: ``parents[s][i]`` is the index of draft token
    ``i``'s parent, -1 right after the sequence's committed tokens. Parents come before their children."""
    words = -(-max((len(draft) for draft in parents), default=0) // 64)
    rows = np.zeros((sum(len(draft) for draft in parents), words), dtype=np.uint64)
    first = 0
    for sequence, draft in enumerate(parents):
        for node, parent in enumerate(draft):
            if not -1 <= parent < node:
                raise ValueError(f"parents[{sequence}][{node}] is {parent}; it must be between -1 and {node - 1}")
            if parent >= 0:
                rows[first + node] = rows[first + parent]
            rows[first + node, node // 64] |= np.uint64(1 << (node % 64))
        first += len(draft)
    return rows


class Plan:
    """Who reads what of a paged cache, found in its block tables: sequences that begin with the same blocks share them.

    ``block_tables`` is int32 ``[sequences, blocks]``, ``lens`` the tokens of each sequence, those of its queries
    included. A sequence's queries are its last tokens: one, or ``queries[s]``. ``masks`` (see `ancestor_masks`) says
    which of them each sees. ``heads`` are query heads, KV heads and head dimension. One plan serves all layers. It is for
    arrays on GPU ``gpu``, or on the CPU; block tables may be anywhere, and are copied to the host.
    """

    def __init__(
        self,
        block_tables: Array,
        lens: Array,
        *,
        heads: tuple[int, int, int],
        page_size: int,
        dtype: str = "float32",
        gpu: int = -1,
        queries: Array | None = None,
        masks: np.ndarray | None = None,
    ) -> None:
        self.page_size, self.dtype, self.gpu = page_size, dtype, gpu
        arrays = (_i32(block_tables), _i32(lens), _i32(queries), masks)
        self._plan = _deft.Plan(tuple(heads), dtype, gpu, page_size, *arrays)

    def update(
        self, block_tables: Array, lens: Array, *, queries: Array | None = None, masks: np.ndarray | None = None
    ) -> str:
        """Other tables in place of those before: "unchanged", "patched" or "replanned"."""
        return self._plan.update(self.page_size, _i32(block_tables), _i32(lens), _i32(queries), masks)

    def upload(self) -> bool:
        """Enqueues copies of what is new of the plan to its GPU, which `attend` does by itself, but not in a CUDA graph's
        capture. Whether graphs captured before must be captured anew."""
        return self._plan.upload(_stream(self.gpu))

    @property
    def rows(self) -> int:
        """Rows of ``q``."""
        return self._plan.rows

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens that queries see, counted once a sequence; how many different ones they are."""
        seen, different = self._plan.tokens
        return seen, different


def attend(
    plan: Plan,
    q: Array,
    k_cache: Array,
    v_cache: Array,
    *,
    order: str = "NHD",
    scale: float | None = None,
    soft_cap: float | None = None,
    out: Array | None = None,
    lse: Array | bool = False,
) -> Any:
    """Attention of one layer over ``k_cache`` and ``v_cache`` where they are; nothing is written but the output.

    ``q`` and the output are ``[rows, q_heads, head_dim]``, the caches ``[blocks, page_size, kv_heads, head_dim]`` (NHD)
    or ``[blocks, kv_heads, page_size, head_dim]`` (HND) of any strides that keep rows contiguous. With ``lse`` the
    result is ``(out, lse)``, lse float32 ``[rows, q_heads]``, natural logarithm.
    """
    k, v = _in_order(k_cache, order), _in_order(v_cache, order)
    out = _like(q, q.shape) if out is None else out
    wanted = _like(q, q.shape[:2], lse=True) if lse is True else (None if lse is False else lse)
    plan._plan.attend(q, k, v, out, wanted, scale or 0.0, soft_cap or 0.0, _stream(plan.gpu, q))
    return out if wanted is None else (out, wanted)


_recent = threading.local()
_KEPT = 8


def _planned(
    stream: int, block_tables: Array, lens: Array, queries: Array | None, masks: np.ndarray | None, **of: Any
) -> Plan:
    """A plan, made of one that this thread used for the like on the same stream if it is kept."""
    plans = _recent.__dict__.setdefault("plans", {})
    key = (stream, *of.values())
    plan = plans.pop(key, None)
    if plan is None:
        plan = Plan(block_tables, lens, queries=queries, masks=masks, **of)
        if len(plans) >= _KEPT:
            del plans[next(iter(plans))]
    else:
        plan.update(block_tables, lens, queries=queries, masks=masks)
    plans[key] = plan
    return plan


def paged_tree_attention(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    block_tables: Array,
    lens: Array,
    *,
    queries: Array | None = None,
    masks: np.ndarray | None = None,
    order: str = "NHD",
    dtype: str | None = None,
    **options: Any,
) -> Any:
    """A plan of ``block_tables`` and `attend` in one, on the device of ``q``; keep a `Plan` where several layers use the same
    tables, and for CUDA graphs."""
    shape = _in_order(k_cache, order).shape
    if len(q.shape) != 3:
        raise ValueError(f"q has {len(q.shape)} dimensions; it must have 3, [rows, q_heads, head_dim]")
    heads, gpu = (q.shape[1], shape[2], shape[3]), _gpu(q)
    of = dict(heads=heads, page_size=shape[1], dtype=_dtype(q, dtype), gpu=gpu)
    plan = _planned(_stream(gpu, q), block_tables, lens, queries, masks, **of)
    return attend(plan, q, k_cache, v_cache, order=order, **options)


def verify(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    block_tables: Array,
    lens: Array,
    parents: Sequence[Sequence[int]],
    **options: Any,
) -> Any:
    """Attention of a draft tree a sequence, in one call: see `ancestor_masks` for ``parents``. The draft's K and V are in
    the cache already, as the sequences' last tokens, and counted by ``lens``."""
    queries = [len(draft) for draft in parents]
    masks = ancestor_masks(parents)
    return paged_tree_attention(q, k_cache, v_cache, block_tables, lens, queries=queries, masks=masks, **options)


class TreeCache:
    """A KV cache of token trees, on the CPU (``gpu=-1``) or a GPU. Nodes are numbers; see docs/using.md."""

    def __init__(
        self,
        *,
        layers: int,
        heads: tuple[int, int, int],
        capacity_bytes: int,
        dtype: str = "float32",
        gpu: int = -1,
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> None:
        numbers = (scale or 0.0, soft_cap or 0.0)
        self._cache = _deft.TreeCache(layers, tuple(heads), dtype, capacity_bytes, gpu, *numbers)

    def insert_root(self) -> int:
        """Starts a tree: an empty root."""
        return self._cache.insert_root()

    def fork(self, node: int, count: int) -> list[int]:
        """Gives a node empty children; nothing is copied."""
        return self._cache.fork(node, count)

    def prune(self, node: int) -> int:
        """Removes a node and all below it; the pages that came free."""
        return self._cache.prune(node)

    def insert_draft(self, trunk: int, parents: Sequence[int]) -> list[int]:
        """Puts a draft of a token a node below ``trunk``; -1 for a parent is the trunk."""
        return self._cache.insert_draft(trunk, list(parents))

    def accept(self, trunk: int, path: Sequence[int]) -> None:
        """The draft's tokens along ``path`` join the trunk, the others are dropped."""
        self._cache.accept(trunk, list(path))

    def length(self, node: int) -> int:
        """A node's own tokens."""
        return self._cache.length(node)

    def batch(self, nodes: Sequence[tuple[int, int]]) -> Batch:
        """Adds ``n`` tokens to each ``(node, n)``, and plans their attention."""
        return self._cache.batch(list(nodes))

    def advance(self, batch: Batch, tokens: int = 1) -> str:
        """The next tokens of the batch's nodes: "unchanged", "patched" or "replanned"."""
        return self._cache.advance(batch, tokens)

    def append(self, layer: int, batch: Batch, k: Array, v: Array) -> None:
        """Writes K and V of the batch's rows, ``[rows, kv_heads, head_dim]``."""
        self._cache.append(layer, batch, k, v, _stream(_gpu(k), k))

    def attend(
        self, layer: int, batch: Batch, q: Array, *, out: Array | None = None, lse: Array | bool = False
    ) -> Any:
        """Attention of one layer: ``q`` and the output are ``[rows, q_heads, head_dim]``; with ``lse``, both."""
        out = _like(q, q.shape) if out is None else out
        wanted = _like(q, q.shape[:2], lse=True) if lse is True else (None if lse is False else lse)
        self._cache.attend(layer, batch, q, out, wanted, _stream(_gpu(q), q))
        return out if wanted is None else (out, wanted)
