"""FlashAttention 3 by the wheel tokenspeed-fa3: every query's path through a page table of pages of one token, as
engines do that share prefixes and know no trees. It reads a shared prefix once a query."""

import torch
from flash_attn_interface import flash_attn_with_kvcache

import _peer


def prepare(problem):
    lengths = torch.tensor([len(path) for path in problem.paths], dtype=torch.int32)
    table = torch.zeros(len(problem.paths), int(lengths.max()), dtype=torch.int32)
    for row, path in enumerate(problem.paths):
        table[row, : len(path)] = path
    table, lengths = table.cuda(), lengths.cuda()
    q, k, v = problem.q[:, None], problem.k[:, None], problem.v[:, None]

    def run():
        out = flash_attn_with_kvcache(
            q, k, v, cache_seqlens=lengths, page_table=table, softmax_scale=problem.scale
        )
        return (out[0] if isinstance(out, tuple) else out)[:, 0]

    return run


_peer.main("FA3, a path a query", "page table of single tokens", prepare)
