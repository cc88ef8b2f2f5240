"""What torch and a GPU add, on a machine that has them: python check_torch.py"""

import sys
import warnings

import numpy as np
import torch
from cases import CASES, Numpy, Problem
from torch import library

import deft
import deft.torch

torch.manual_seed(0)
TABLES = torch.tensor([[5, 2, 7], [5, 2, 0], [5, 2, 4], [1, -1, -1]], dtype=torch.int32)
LENS = torch.tensor([40, 33, 48, 9], dtype=torch.int32)
HEADS = (4, 2, 64)


def problem(dtype, device="cpu"):
    k, v = torch.randn(2, 9, 16, 2, 64, device=device).to(dtype)
    return torch.randn(4, 4, 64, device=device).to(dtype), k, v


def right(q, k, v, lens=LENS):
    rows = []
    for row, (table, length) in enumerate(zip(TABLES, lens)):
        blocks = table[: -(-length // 16)].long().to(k.device)
        keys, values = (half[blocks].flatten(0, 1)[:length].double() for half in (k, v))
        keys, values = (half.repeat_interleave(2, 1).transpose(0, 1) for half in (keys, values))
        query = q[row].double()[:, None]
        rows.append(torch.nn.functional.scaled_dot_product_attention(query, keys, values)[:, 0])
    return torch.stack(rows)


def close(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-2, atol=2e-2)


class Gpu(Numpy):
    """A case's arrays as torch's, on GPU 0."""

    gpu = 0

    def put(self, memory):
        if memory.dtype == np.uint16:
            return torch.from_numpy(memory.view(np.int16)).cuda().view(torch.bfloat16)
        return torch.from_numpy(memory).cuda()

    def get(self, array):
        bits = array.view(torch.int16) if array.dtype == torch.bfloat16 else array
        return bits.cpu().numpy().view(np.uint16) if bits is not array else array.cpu().numpy()

    def strided(self, memory, begin, shape, strides):
        return torch.as_strided(memory, tuple(shape), tuple(strides), begin)

    def narrow(self, array):
        return array.half()


def check_types():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        q, k, v = problem(dtype)
        for order, halves in (("NHD", (k, v)), ("HND", [half.transpose(1, 2).contiguous() for half in (k, v)])):
            out = deft.paged_tree_attention(q, *halves, TABLES, LENS, order=order)
            assert out.dtype == dtype
            close(out, right(q, k, v))


def check_operators(device="cpu", dtype=torch.float32, backends=("aot_eager",)):
    q, k, v = problem(dtype, device)
    plan = deft.Plan(
        TABLES, LENS, heads=HEADS, page_size=16, dtype=str(dtype)[6:], gpu=-1 if device == "cpu" else 0
    )
    number = deft.torch.handle(plan)
    calls = [
        (torch.ops.deft.paged_tree_attention, (q, k, v, TABLES, LENS)),
        (torch.ops.deft.attend, (q, k, v, number)),
    ]
    for operator, arguments in calls:
        library.opcheck(operator, arguments)
        plain = operator(*arguments)
        close(plain[0], right(q, k, v))
        for backend in backends:
            compiled = torch.compile(lambda *all: operator(*all)[0] * 2, fullgraph=True, backend=backend)
            torch.testing.assert_close(compiled(*arguments), plain[0] * 2)
    parents = [[-1, 0, 0], [-1], [-1], [-1]]
    masks = torch.from_numpy(deft.ancestor_masks(parents).view(np.int64))
    q = torch.randn(6, 4, 64, device=device).to(dtype)
    drafts = torch.ops.deft.paged_tree_attention(q, k, v, TABLES, LENS, [3, 1, 1, 1], masks)
    torch.testing.assert_close(drafts[0], deft.verify(q, k, v, TABLES, LENS, parents))


def check_cases_on_gpu():
    wrong = []
    for case in CASES:
        if case.get("change", "").endswith(".data") and not case["change"].startswith("out"):
            continue  # torch makes no misaligned tensor
        try:
            Problem(case, Gpu()).check()
        except (AssertionError, RuntimeError, TypeError) as error:
            wrong.append(f"{case['name']}: {error}")
    assert not wrong, wrong


def check_operators_on_gpu():
    check_operators("cuda", torch.bfloat16, ("aot_eager", "inductor"))


def check_devices():
    q, k, v = problem(torch.bfloat16, "cuda")
    of = dict(heads=HEADS, page_size=16, dtype="bfloat16")
    for plan, arrays, text in [
        (deft.Plan(TABLES, LENS, **of), (q, k, v), "q is on GPU 0; it must be on the CPU, as the plan is"),
        (deft.Plan(TABLES, LENS, gpu=0, **of), (q, k.cpu(), v), "k is on the CPU; it must be on GPU 0, as the plan is"),
    ]:
        try:
            deft.attend(plan, *arrays)
            raise AssertionError("it was taken")
        except ValueError as refused:
            assert text in str(refused), refused


def check_streams():
    """Work is on torch's current stream: behind what was enqueued there before, before what comes after."""
    q, k, v = problem(torch.bfloat16, "cuda")
    expected = right(q, k, v)
    blank = torch.full_like(q, torch.nan)
    for _ in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            late = blank.clone()
            torch.cuda._sleep(2_000_000)
            late.copy_(q)
            out = deft.paged_tree_attention(late, k, v, TABLES.cuda(), LENS.cuda())
            late.copy_(blank)
            close(out, expected)
    torch.cuda.synchronize()


def check_graph():
    q, k, v = problem(torch.bfloat16, "cuda")
    lens = torch.tensor([33, 33, 33, 9], dtype=torch.int32)
    plan = deft.Plan(TABLES, lens, heads=HEADS, page_size=16, dtype="bfloat16", gpu=0)
    number = deft.torch.handle(plan)
    with warnings.catch_warnings():
        # The call is refused before it enqueues anything, so this graph is empty, and torch says so.
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                torch.ops.deft.attend(q, k, v, number)
            raise AssertionError("a plan that the GPU has not was captured")
        except ValueError as refused:
            assert "plan is newer than what the device has" in str(refused), refused
    graph = torch.cuda.CUDAGraph()
    plan.upload()
    with torch.cuda.graph(graph):
        layers = [torch.ops.deft.attend(q, k, v, number)[0] for _ in range(2)]
    for step in range(12):
        if step:
            lens = torch.minimum(lens + 1, torch.tensor([48, 48, 48, 16], dtype=torch.int32))
            plan.update(TABLES, lens)
            assert not plan.upload(), "the graph stays"
        q.copy_(torch.randn_like(q))
        for out in layers:
            out.fill_(torch.nan)
        graph.replay()
        for out in layers:
            close(out, right(q, k, v, lens))
    compiled = torch.compile(lambda q: torch.ops.deft.attend(q, k, v, number)[0] + 1, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        close(compiled(q) - 1, right(q, k, v, lens))


def check_cache():
    cache = deft.TreeCache(layers=1, heads=HEADS, dtype="bfloat16", capacity_bytes=1 << 24, gpu=0)
    with torch.cuda.stream(torch.cuda.Stream()):
        root = cache.insert_root()
        batch = cache.batch([(root, 100)])
        k, v = torch.randn(2, 100, 2, 64, device="cuda").bfloat16()
        q = torch.randn(100, 4, 64, device="cuda").bfloat16()
        cache.append(0, batch, k, v)
        out = cache.attend(0, batch, q)
        keys, values = (half.repeat_interleave(2, 1).transpose(0, 1).double() for half in (k, v))
        attention = torch.nn.functional.scaled_dot_product_attention
        close(out, attention(q.transpose(0, 1).double(), keys, values, is_causal=True).transpose(0, 1))
        torch.cuda.synchronize()


def main():
    checks = [check_types, check_operators]
    if torch.cuda.is_available():
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, deft {deft.__version__}")
        checks += [check_cases_on_gpu, check_devices, check_streams, check_operators_on_gpu, check_graph, check_cache]
    failed = 0
    for check in checks:
        try:
            check()
            print(f"{check.__name__}: ok", flush=True)
        except Exception as error:  # each check is told
            failed += 1
            print(f"{check.__name__}: {type(error).__name__}: {error}", flush=True)
    if not torch.cuda.is_available():
        print("there is no GPU")
    sys.exit(failed)


if __name__ == "__main__":
    main()
