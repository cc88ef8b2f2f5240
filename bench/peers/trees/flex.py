"""PyTorch's FlexAttention: all trees in one call, blocks that no query of a block sees left out."""

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import _peer

flex = torch.compile(flex_attention, dynamic=False)


def prepare(problem):
    torch.compiler.reset()
    seen = torch.zeros(len(problem.paths), problem.tokens, dtype=torch.bool)
    for row, path in enumerate(problem.paths):
        seen[row, path] = True
    seen = seen.cuda()

    def mask(batch, head, query, token):
        return seen[query, token]

    blocks = create_block_mask(mask, None, None, len(problem.paths), problem.tokens, device="cuda")
    q, k, v = (x.transpose(0, 1)[None].contiguous() for x in (problem.q, problem.k, problem.v))

    def run():
        out = flex(q, k, v, block_mask=blocks, scale=problem.scale, enable_gqa=True)
        return out[0].transpose(0, 1)

    return run


_peer.main("FlexAttention", "compiled, a block mask of who sees what", prepare)
