"""What torch adds, on a machine that has it: python check_torch.py"""

import sys

import numpy as np
import torch
from torch import library

import deft
import deft.torch

torch.manual_seed(0)
TABLES = torch.tensor([[5, 2, 7], [5, 2, 0], [5, 2, 4], [1, -1, -1]], dtype=torch.int32)
LENS = torch.tensor([40, 33, 48, 9], dtype=torch.int32)


def problem(dtype):
    k, v = torch.randn(2, 9, 16, 2, 64).to(dtype)
    return torch.randn(4, 4, 64).to(dtype), k, v


def right(q, k, v):
    rows = []
    for row, (table, length) in enumerate(zip(TABLES, LENS)):
        keys, values = (half[table[: -(-length // 16)].long()].flatten(0, 1)[:length].double() for half in (k, v))
        keys, values = (half.repeat_interleave(2, 1).transpose(0, 1) for half in (keys, values))
        query = q[row].double()[:, None]
        rows.append(torch.nn.functional.scaled_dot_product_attention(query, keys, values)[:, 0])
    return torch.stack(rows)


def check_types():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        q, k, v = problem(dtype)
        for order, halves in (("NHD", (k, v)), ("HND", (k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()))):
            out = deft.paged_tree_attention(q, *halves, TABLES, LENS, order=order)
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), right(q, k, v), rtol=1e-2, atol=1e-2)


def check_operator():
    q, k, v = problem(torch.float32)
    arguments = (q, k, v, TABLES, LENS)
    library.opcheck(torch.ops.deft.paged_tree_attention, arguments)
    plain = torch.ops.deft.paged_tree_attention(*arguments)
    compiled = torch.compile(lambda *all: torch.ops.deft.paged_tree_attention(*all)[0] * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), plain[0] * 2)
    masks = torch.from_numpy(deft.ancestor_masks([[-1, 0, 0], [-1], [-1], [-1]]).view(np.int64))
    q = torch.randn(6, 4, 64)
    drafts = torch.ops.deft.paged_tree_attention(q, k, v, TABLES, LENS, [3, 1, 1, 1], masks)
    torch.testing.assert_close(drafts[0], deft.verify(q, k, v, TABLES, LENS, [[-1, 0, 0], [-1], [-1], [-1]]))


def check_gpu():
    q, k, v = (tensor.cuda() for tensor in problem(torch.bfloat16))
    try:
        deft.paged_tree_attention(q, k, v, TABLES, LENS)
        raise AssertionError("a GPU's tensors were taken")
    except ValueError as refused:
        assert "on a GPU" in str(refused), refused
    cache = deft.TreeCache(layers=1, heads=(4, 2, 64), dtype="bfloat16", capacity_bytes=1 << 24, gpu=0)
    with torch.cuda.stream(torch.cuda.Stream()):
        root = cache.insert_root()
        batch = cache.batch([(root, 100)])
        k, v = torch.randn(2, 100, 2, 64, device="cuda").bfloat16()
        q = torch.randn(100, 4, 64, device="cuda").bfloat16()
        cache.append(0, batch, k, v)
        out = cache.attend(0, batch, q)
        keys, values = (half.repeat_interleave(2, 1).transpose(0, 1).double() for half in (k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1).double(), keys, values, is_causal=True
        ).transpose(0, 1)
        torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
        torch.cuda.synchronize()


def main():
    checks = [check_types, check_operator] + ([check_gpu] if torch.cuda.is_available() else [])
    failed = 0
    for check in checks:
        try:
            check()
            print(f"{check.__name__}: ok")
        except Exception as error:  # each check is told
            failed += 1
            print(f"{check.__name__}: {type(error).__name__}: {error}")
    if not torch.cuda.is_available():
        print("check_gpu: skipped, there is no GPU")
    sys.exit(failed)


if __name__ == "__main__":
    main()
