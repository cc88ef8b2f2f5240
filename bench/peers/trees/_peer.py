"""What the peers of this folder share: the protocol of ../README.md, trees, the timing loop and the check."""

import json
import sys

import torch

FLUSH_WORDS = 64 << 20


class Tree:
    """A tree of a workload: all its tokens node after node, and which of them each query sees."""

    def __init__(self, tree):
        self.parents, self.lens = tree["parents"], tree["lens"]
        inner = set(self.parents)
        self.queries = tree.get("queries") or [n for n in range(len(self.lens)) if n not in inner]
        self.begins = [0]
        for tokens in self.lens:
            self.begins.append(self.begins[-1] + tokens)
        self.tokens = self.begins[-1]

    def path(self, query):
        """Indices of the tokens that a query sees, from the root on."""
        nodes = []
        while query >= 0:
            nodes.append(query)
            query = self.parents[query]
        spans = (torch.arange(self.begins[n], self.begins[n + 1]) for n in reversed(nodes))
        return torch.cat(list(spans))


class Problem:
    """A workload with random queries, keys and values on the GPU: `q` is [queries, heads, dim], `k` and `v` are
    [tokens, kv_heads, dim], trees one after the other."""

    def __init__(self, workload):
        self.trees = [Tree(tree) for tree in workload["trees"]]
        self.heads, self.kv_heads = workload["num_q_heads"], workload["num_kv_heads"]
        self.dim = workload["head_dim"]
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[workload["dtype"]]
        self.paths, first = [], 0
        for tree in self.trees:
            self.paths += [tree.path(query) + first for query in tree.queries]
            first += tree.tokens
        self.tokens = first
        torch.manual_seed(0)

        def random(count, heads):
            return torch.randn(count, heads, self.dim, device="cuda", dtype=torch.float32).to(dtype)

        self.q = random(len(self.paths), self.heads)
        self.k, self.v = random(self.tokens, self.kv_heads), random(self.tokens, self.kv_heads)
        self.scale = self.dim**-0.5

    def error(self, out, checked):
        """The largest relative L2 error of some queries' rows of `out`, [queries, heads, dim], against f64."""
        worst = 0.0
        group = self.heads // self.kv_heads
        count = min(checked, len(self.paths))
        for query in {i * len(self.paths) // count for i in range(count)}:
            path = self.paths[query].cuda()
            k, v = (x[path].double().repeat_interleave(group, dim=1) for x in (self.k, self.v))
            logits = torch.einsum("hd,thd->ht", self.q[query].double(), k) * self.scale
            exact = torch.einsum("ht,thd->hd", logits.softmax(-1), v)
            error = (out[query].double() - exact).norm(dim=-1) / exact.norm(dim=-1)
            worst = max(worst, error.max().item())
        return worst


def time_us(run, warmup, iterations):
    """Microseconds of a replayed graph of `run` with an L2 that a read has emptied: 20th, 50th, 80th percentile."""
    flush = torch.zeros(FLUSH_WORDS, dtype=torch.int32, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(warmup + iterations):
        flush.sum()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1000 * begin.elapsed_time(end))
    times = sorted(times[warmup:])
    return [times[int(part * (len(times) - 1))] for part in (0.2, 0.5, 0.8)]


def say(line):
    print(json.dumps(line), flush=True)


def answer(prepare, request):
    workload = request["workload"]
    try:
        problem = Problem(workload)
        run = prepare(problem)
        out = run().reshape(problem.q.shape)
        error = problem.error(out, request["checked"])
        p20, median, p80 = time_us(run, request["warmup"], max(request["iterations"], 1))
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        return {"workload": workload["name"], "skipped": why[0]}
    times = {"median_us": median, "p20_us": p20, "p80_us": p80}
    return {"workload": workload["name"], "max_rel_l2": error} | times


def main(name, about, prepare):
    """Runs a peer. `prepare(problem)` returns a function without arguments that enqueues attention and returns its
    output, rows of queries in the problem's order; what it does itself, as planning, is not timed."""
    scratch = torch.zeros(1, device="cuda")
    _, empty_us, _ = time_us(lambda: scratch.add_(1), 10, 60)
    device = f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}"
    say({"peer": name, "about": f"{about}; {device}; graph of one small kernel {empty_us:.2f} us"})
    for line in sys.stdin:
        say(answer(prepare, json.loads(line)))
        torch.cuda.empty_cache()
