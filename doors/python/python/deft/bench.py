"""``python -m deft.bench``: attention over one paged cache, by this package and by what is used for it otherwise.

All read the same tensors by the same block tables, as CUDA graphs of one layer: torch's SDPA over K and V gathered to
``[sequences, heads, tokens, head_dim]``, FlexAttention over the whole pool with a block mask of who sees what, and where
``flash_attn_interface`` can be imported, FlashAttention 3, which reads block tables itself. Needs torch and a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
from typing import Any, Callable

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

import deft

HEADS = (32, 8, 128)
DTYPE = torch.bfloat16
FLUSH_WORDS = 64 << 20


class Sequences:
    """Block tables that are filled as an engine does it: branches share the full blocks of their prefix."""

    def __init__(self, page: int) -> None:
        self.page, self.rows, self.lens, self.parents, self.used = page, [], [], None, 0

    def _blocks(self, count: int) -> list[int]:
        self.used += count
        return list(range(self.used - count, self.used))

    def grow(self, before: tuple[list[int], int], tokens: int) -> tuple[list[int], int]:
        """A sequence that continues another one by `tokens`; a partly filled block is its own."""
        blocks, length = before
        blocks = blocks[: length // self.page]
        return blocks + self._blocks(-(-(length + tokens) // self.page) - len(blocks)), length + tokens

    def add(self, sequence: tuple[list[int], int]) -> None:
        self.rows.append(sequence[0])
        self.lens.append(sequence[1])


def few_shot(page: int, prompt: int, branches: int, own: int, prompts: int = 1) -> Sequences:
    made = Sequences(page)
    for _ in range(prompts):
        trunk = made.grow(([], 0), prompt)
        for branch in range(branches):
            made.add(made.grow(trunk, own + branch))
    return made


def thoughts(page: int, prompt: int, fan: int, depth: int, own: int) -> Sequences:
    made = Sequences(page)
    level = [made.grow(([], 0), prompt)]
    for _ in range(depth):
        level = [made.grow(node, own) for node in level for _ in range(fan)]
    for leaf in level:
        made.add(leaf)
    return made


def drafts(page: int, context: int, nodes: int, sequences: int) -> Sequences:
    made, draw = few_shot(page, 0, sequences, context + nodes), random.Random(0)
    made.parents = [[-1] + [draw.randrange(max(0, at - 8), at) for at in range(1, nodes)] for _ in range(sequences)]
    return made


CASES: dict[str, Callable[[int], Sequences]] = {
    "32 branches of 4k": lambda page: few_shot(page, 4000, 32, 200),
    "64 branches of 16k": lambda page: few_shot(page, 16000, 64, 200),
    "4 prompts of 8k, 16 branches each": lambda page: few_shot(page, 8000, 16, 100, prompts=4),
    "tree of thoughts, 64 leaves": lambda page: thoughts(page, 2000, 4, 3, 300),
    "32 sequences of 2k, nothing shared": lambda page: few_shot(page, 0, 32, 2000),
    "a draft of 64 nodes over 8k": lambda page: drafts(page, 8000, 64, 1),
    "16 drafts of 16 nodes over 4k": lambda page: drafts(page, 4000, 16, 16),
}


class Problem:
    """Tensors and tables of a case; blocks are in random order in a pool with as many again that are somebody else's."""

    def __init__(self, made: Sequences) -> None:
        torch.manual_seed(0)
        q_heads, kv_heads, dim = HEADS
        self.page, self.lens, self.parents = made.page, made.lens, made.parents
        self.counts = [len(draft) for draft in made.parents] if made.parents else [1] * len(made.lens)
        order = torch.randperm(made.used + made.used // 8)[: made.used].tolist()
        width = max(map(len, made.rows))
        rows = [[order[block] for block in row] + [0] * (width - len(row)) for row in made.rows]
        self.tables = torch.tensor(rows, dtype=torch.int32)
        blocks = made.used + made.used // 8
        self.k, self.v = torch.randn(2, blocks, made.page, kv_heads, dim, device="cuda").to(DTYPE)
        self.q = torch.randn(sum(self.counts), q_heads, dim, device="cuda").to(DTYPE)
        self.masks = deft.ancestor_masks(made.parents) if made.parents else None

    def seen(self) -> list[tuple[int, torch.Tensor]]:
        """Of each row its sequence, and which of its tokens it sees."""
        rows = []
        for sequence, (length, count) in enumerate(zip(self.lens, self.counts)):
            for query in range(count):
                sees = torch.ones(length, dtype=torch.bool)
                sees[length - count :] = False
                at = query
                while at >= 0:
                    sees[length - count + at] = True
                    at = self.parents[sequence][at] if self.parents else -1
                rows.append((sequence, sees))
        return rows

    def places(self, sequence: int, tokens: torch.Tensor) -> torch.Tensor:
        """Where tokens of a sequence are in the pool, counted in tokens."""
        return self.tables[sequence, tokens // self.page].long() * self.page + tokens % self.page

    def exact(self) -> torch.Tensor:
        group, outs = HEADS[0] // HEADS[1], []
        for row, (sequence, sees) in enumerate(self.seen()):
            at = self.places(sequence, sees.nonzero()[:, 0]).cuda()
            k, v = (x.flatten(0, 1)[at].double().repeat_interleave(group, 1) for x in (self.k, self.v))
            weights = (torch.einsum("hd,thd->ht", self.q[row].double(), k) * HEADS[2] ** -0.5).softmax(-1)
            outs.append(torch.einsum("ht,thd->hd", weights, v))
        return torch.stack(outs)


def of_deft(problem: Problem) -> Callable[[], torch.Tensor]:
    plan = deft.Plan(
        problem.tables, problem.lens, heads=HEADS, page_size=problem.page, dtype="bfloat16",
        gpu=torch.cuda.current_device(), queries=problem.counts, masks=problem.masks,
    )  # fmt: skip
    plan.upload()
    return lambda: deft.attend(plan, problem.q, problem.k, problem.v)


def of_fa3(problem: Problem) -> Callable[[], torch.Tensor]:
    from flash_attn_interface import flash_attn_with_kvcache

    if problem.parents:
        raise NotImplementedError("it has no masks")
    tables, lens = problem.tables.cuda(), torch.tensor(problem.lens, dtype=torch.int32, device="cuda")

    def run() -> torch.Tensor:
        out = flash_attn_with_kvcache(problem.q[:, None], problem.k, problem.v, cache_seqlens=lens, page_table=tables)
        return (out[0] if isinstance(out, tuple) else out)[:, 0]

    return run


def of_flex(problem: Problem, decoding: bool) -> Callable[[], torch.Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()
    tokens, rows = problem.k.shape[0] * problem.page, problem.q.shape[0]
    seen = torch.zeros(rows, tokens, dtype=torch.bool)
    for row, (sequence, sees) in enumerate(problem.seen()):
        seen[row, problem.places(sequence, sees.nonzero()[:, 0])] = True
    seen = seen.cuda()
    blocks = create_block_mask(lambda b, h, row, token: seen[row, token], None, None, rows, tokens, device="cuda")
    flex = torch.compile(flex_attention, dynamic=False)
    k, v = (x.flatten(0, 1).transpose(0, 1)[None] for x in (problem.k, problem.v))

    options = {} if decoding else {"FORCE_USE_FLEX_ATTENTION": True}

    def run() -> torch.Tensor:
        q = problem.q.transpose(0, 1)[None]
        return flex(q, k, v, block_mask=blocks, enable_gqa=True, kernel_options=options)[0].transpose(0, 1)

    return run


def of_sdpa(problem: Problem, gathered: bool) -> Callable[[], torch.Tensor]:
    longest, queries = max(problem.lens), max(problem.counts)
    if min(problem.counts) != queries:
        raise NotImplementedError("sequences have different numbers of queries")
    tokens = torch.arange(longest)
    places = torch.stack([problem.places(at, tokens.clamp(max=length - 1)) for at, length in enumerate(problem.lens)])
    mask = torch.zeros(len(problem.lens), 1, queries, longest, dtype=torch.bool)
    for row, (sequence, sees) in enumerate(problem.seen()):
        mask[sequence, 0, row % queries, : len(sees)] = sees
    places, mask = places.cuda(), mask.cuda()

    def gather() -> list[torch.Tensor]:
        return [x.flatten(0, 1)[places].transpose(1, 2) for x in (problem.k, problem.v)]

    kept = gather() if gathered else None
    q = problem.q.unflatten(0, (-1, queries)).transpose(1, 2)

    def run() -> torch.Tensor:
        k, v = kept or gather()
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2).flatten(0, 1)

    return run


PEERS: dict[str, Callable[[Problem], Callable[[], torch.Tensor]]] = {
    "deft, in place": of_deft,
    "FlashAttention 3, block tables": of_fa3,
    "FlexAttention": lambda problem: of_flex(problem, decoding=True),
    "FlexAttention, plain kernel": lambda problem: of_flex(problem, decoding=False),
    "SDPA, gathered every step": lambda problem: of_sdpa(problem, gathered=False),
    "SDPA, gathered before": lambda problem: of_sdpa(problem, gathered=True),
}


def time_us(graph: torch.cuda.CUDAGraph, iterations: int, cold: bool) -> float:
    """The median of the microseconds of a replay. Before each a read of 256 MB empties L2, or a kernel waits as long and leaves
    it as it is, so that the replay is enqueued before the GPU comes to it."""
    flush = torch.zeros(FLUSH_WORDS, dtype=torch.int32, device="cuda")
    times = []
    for _ in range(iterations + 5):
        if cold:
            flush.sum()
        else:
            torch.cuda._sleep(200_000)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1000 * begin.elapsed_time(end))
    return float(np.median(times[5:]))


def other_memory() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def measure(problem: Problem, prepare: Callable[[Problem], Callable[[], torch.Tensor]], exact: torch.Tensor, times: int):
    """Times, the largest difference from f64, and the memory that it takes besides the problem's: the peak of torch's while
    it runs, and what others than torch took."""
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    allocated, others = torch.cuda.memory_allocated(), other_memory()
    run = prepare(problem)
    torch.cuda.reset_peak_memory_stats()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            out = run()
    torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() - allocated + max(other_memory() - others, 0)
    difference = (out.double() - exact).abs().max().item()
    del out
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return {
        "cold_us": time_us(graph, times, cold=True),
        "warm_us": time_us(graph, times, cold=False),
        "max_difference": difference,
        "memory_bytes": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deft.bench", description=__doc__)
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--filter", default="", help="cases whose names contain this")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=100)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("python -m deft.bench needs a GPU that torch can use")
    about = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "deft": deft.__version__, "heads": HEADS,
        "page_size": arguments.page_size, "iterations": arguments.iterations, "command": " ".join(sys.argv[1:]),
    }  # fmt: skip
    print(about)
    print(f"{'':34}{'cold us':>9}{'warm us':>9}{'difference':>12}{'memory MB':>11}")
    rows: list[dict[str, Any]] = []
    small = Problem(few_shot(arguments.page_size, 64, 2, 9))
    for prepare in PEERS.values():  # what is compiled, loaded and set up once
        with contextlib.suppress(Exception):
            measure(small, prepare, small.exact(), 1)
    try:
        measure_all(arguments, rows)
    finally:
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump({**about, "rows": rows}, file, indent=1)


def measure_all(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    for name in (name for name in CASES if arguments.filter in name):
        problem = Problem(CASES[name](arguments.page_size))
        exact = problem.exact()
        print(f"{name}: {problem.q.shape[0]} rows, {sum(problem.lens)} tokens, {problem.k.nbytes * 2 >> 20} MiB of pool")
        for peer, prepare in PEERS.items():
            row = {"case": name, "peer": peer}
            try:
                row |= measure(problem, prepare, exact, arguments.iterations)
                numbers = f"{row['cold_us']:9.1f}{row['warm_us']:9.1f}{row['max_difference']:12.1e}"
                print(f"  {peer:32}{numbers}{row['memory_bytes'] / 1e6:11.1f}", flush=True)
            except Exception as error:  # a peer that cannot is said to
                row["skipped"] = (str(error).strip().splitlines() or [type(error).__name__])[0]
                print(f"  {peer:32}  {row['skipped'][:80]}", flush=True)
            rows.append(row)


if __name__ == "__main__":
    main()
