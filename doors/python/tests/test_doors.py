"""The package on doors/cases.json, the table that every door is tested with, and what only Python has."""

import json
import pathlib

import deft
import numpy as np
import pytest

TABLE = json.loads((pathlib.Path(__file__).parents[2] / "cases.json").read_text())
CASES = [{**TABLE[case["like"]], **case} if "like" in case else case for case in TABLE]
NUMPY = {"f16": "float16", "bf16": "float32", "f32": "float32"}
NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}


def values(seed: int, count: int) -> np.ndarray:
    words = np.arange(count, dtype=np.uint64) * 2654435761 + seed * 40503
    return (((words & 0xFFFFFFFF) >> 8).astype(np.float32) / np.float32(1 << 23) - np.float32(1)).astype(np.float32)


def to_bf16(wide: np.ndarray) -> np.ndarray:
    bits = wide.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def of_type(dtype: str, wide: np.ndarray) -> np.ndarray:
    return to_bf16(wide) if dtype == "bf16" else wide.astype(NUMPY[dtype])


def to_f64(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


class Problem:
    def __init__(self, case: dict) -> None:
        self.case, dtype = case, case["dtype"]
        self.heads = q_heads, kv, dim = case["heads"]
        page, blocks, layout = case["page_size"], case["blocks"], case["layout"]
        size = page * kv * dim
        self.order = "HND" if layout == "hnd" else "NHD"
        if layout == "padded":
            slot = kv * (dim + 8) + 8
            begins, strides = [0, blocks * (page * slot + 16)], [page * slot + 16, slot, dim + 8]
            count = 2 * begins[1]
        elif layout == "both":
            begins, strides, count = [0, size], [2 * size, kv * dim, dim], 2 * blocks * size
        else:
            begins, count = [0, blocks * size], 2 * blocks * size
            strides = [size, dim, page * dim] if layout == "hnd" else [size, kv * dim, dim]
        memory = of_type(dtype, values(1, count))
        shape, item = (blocks, page, kv, dim), memory.itemsize
        self.kv = [
            np.lib.stride_tricks.as_strided(memory[begin:], shape, [s * item for s in [*strides, 1]]) for begin in begins
        ]
        self.lens, self.parents = case["lens"], case.get("parents")
        width = max((len(row) for row in case["tables"]), default=0)
        self.tables = np.array([row + [-1] * (width - len(row)) for row in case["tables"]], dtype=np.int32)
        self.tables = self.tables.reshape(len(case["tables"]), width)
        drafts = [len(draft) for draft in self.parents] if self.parents else None
        self.queries = case.get("queries", drafts)
        self.counts = self.queries or [1] * len(self.lens)
        self.q = of_type(dtype, values(2, sum(self.counts) * q_heads * dim)).reshape(-1, q_heads, dim)

    def masks(self):
        if "masks" in self.case:
            return np.array(self.case["masks"], dtype=np.uint64)[:, None]
        return deft.ancestor_masks(self.parents) if self.parents else None

    def caches(self):
        return [half.transpose(0, 2, 1, 3) if self.order == "HND" else half for half in self.kv]

    def run(self):
        arrays = dict(zip(["k", "v"], self.caches()), q=self.q, out=np.full_like(self.q, 7))
        k = arrays["k"]
        name, _, what = self.case.get("change", "").partition(".")
        if what == "strides":
            arrays[name] = np.lib.stride_tricks.as_strided(k, k.shape, [*k.strides[:3], 2 * k.itemsize])
        elif (name, what) == ("out", "data"):
            arrays[name] = np.lib.stride_tricks.as_strided(k, self.q.shape, self.q.strides)
        elif what == "data":
            moved = np.zeros(k.nbytes + 1, dtype=np.uint8)[1:]
            arrays[name] = moved.view(k.dtype).reshape(k.shape)
        elif (name, what) == ("q", "shape"):
            arrays[name] = self.q[:-1]
        elif what == "shape":
            arrays[name] = k[:, : k.shape[1] // 2]
        elif what == "dtype":
            arrays[name] = self.q.astype(np.float16)
        plan = deft.Plan(
            self.tables,
            np.array(self.lens, dtype=np.int32),
            heads=self.heads,
            page_size=self.case["page_size"],
            dtype=NAMES[self.case["dtype"]],
            queries=self.queries,
            masks=self.masks(),
        )
        out = arrays["out"]
        try:
            _, lse = deft.attend(plan, arrays["q"], arrays["k"], arrays["v"], order=self.order, out=out, lse=True)
        except ValueError:
            if name != "out":
                assert (out == 7).all(), "nothing is written"
            raise
        return plan, out, lse

    def right(self):
        """Attention of each sequence for itself, in f64."""
        (q_heads, kv_heads, dim), page, row = self.heads, self.case["page_size"], 0
        out, lse = np.zeros(self.q.shape), np.full(self.q.shape[:2], -np.inf)
        k, v = (to_f64(np.ascontiguousarray(half)) for half in self.kv)
        for sequence, (length, count) in enumerate(zip(self.lens, self.counts)):
            before = max(length - count, 0)
            for query in range(count):
                own = range(query + 1)
                if self.parents:
                    own, at = [], query
                    while at >= 0:
                        own, at = [at, *own], self.parents[sequence][at]
                seen = [t for t in [*range(before), *(before + t for t in own)] if t < length]
                places = [self.tables[sequence][t // page] for t in seen], [t % page for t in seen]
                for head in range(q_heads if seen else 0):
                    keys, rows = (half[places][:, head // (q_heads // kv_heads)] for half in (k, v))
                    logits = keys @ to_f64(self.q[row, head]) / np.sqrt(dim)
                    weights = np.exp(logits - logits.max())
                    out[row, head] = weights @ rows / weights.sum()
                    lse[row, head] = logits.max() + np.log(weights.sum())
                row += 1
        return out, lse


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_case_gives_what_it_says(case):
    problem = Problem(case)
    if "error" in case:
        with pytest.raises(ValueError) as refused:
            problem.run()
        assert case["error"] in str(refused.value)
        return
    plan, out, lse = problem.run()
    right, right_lse = problem.right()
    far = np.linalg.norm(to_f64(out) - right, axis=-1)
    assert (far <= (1e-5 if case["dtype"] == "f32" else 5e-3) * np.maximum(np.linalg.norm(right, axis=-1), 1e-30)).all()
    np.testing.assert_allclose(lse, right_lse, atol=1e-3)
    assert plan.rows == len(out)
    if "tokens" in case:
        assert plan.tokens == tuple(case["tokens"])


def test_one_call_gives_what_a_plan_gives():
    problem = Problem(CASES[8])
    k, v = problem.caches()
    _, expected, _ = problem.run()
    arguments = (problem.q, k, v, problem.tables, problem.lens)
    out = deft.verify(*arguments, problem.parents, dtype="bfloat16")
    np.testing.assert_array_equal(out, expected)
    out = deft.paged_tree_attention(*arguments, queries=problem.queries, masks=problem.masks(), dtype="bfloat16")
    np.testing.assert_array_equal(out, expected)


def test_a_plan_follows_sequences_that_grow():
    problem = Problem(CASES[1])
    plan = deft.Plan(problem.tables, [33, 33, 40, 9], heads=problem.heads, page_size=16)
    assert plan.update(problem.tables, [34, 34, 41, 10]) == "unchanged"
    assert plan.update(problem.tables, [34, 34, 41, 10], queries=[2, 1, 1, 1]) == "replanned"
    with pytest.raises(ValueError, match="stream|block_tables has 4 rows; it must have 3"):
        plan.update(problem.tables, [1, 2, 3])
    assert plan.rows == 5


def test_parents_come_before_their_children():
    with pytest.raises(ValueError, match=r"parents\[1\]\[0\] is 0; it must be between -1 and -1"):
        deft.ancestor_masks([[-1], [0]])
    assert deft.ancestor_masks([[-1, 0, 0], [-1]]).tolist() == [[1], [3], [5], [1]]


def test_arrays_that_are_none_are_refused_by_name():
    problem = Problem(CASES[1])
    plan = deft.Plan(problem.tables, problem.lens, heads=problem.heads, page_size=16)
    k, v = problem.caches()
    out = np.empty_like(problem.q)
    with pytest.raises(ValueError, match="q gives no DLPack tensor"):
        deft.attend(plan, [1.0], k, v, out=out)
    with pytest.raises(ValueError, match="v has elements of DLPack's kind 2 and 64 bits"):
        deft.attend(plan, problem.q, k, v.astype(np.float64), out=out)
    with pytest.raises(ValueError, match="order is 'XYZ'"):
        deft.attend(plan, problem.q, k, v, order="XYZ", out=out)
    with pytest.raises(ValueError, match="whole numbers"):
        deft.Plan(problem.tables, [1.5, 2, 3, 4], heads=problem.heads, page_size=16)


def test_a_cache_of_token_trees_decodes_drafts_and_accepts():
    cache = deft.TreeCache(layers=1, heads=(4, 2, 64), capacity_bytes=1 << 20)
    root = cache.insert_root()
    prompt = cache.batch([(root, 10)])
    ones = lambda rows, heads: np.ones((rows, heads, 64), dtype=np.float32)
    cache.append(0, prompt, ones(10, 2), ones(10, 2))
    assert (cache.attend(0, prompt, ones(10, 4)) == 1).all()
    a, b, c = cache.insert_draft(root, [-1, 0, 0])
    batch = cache.batch([(a, 1), (b, 1), (c, 1)])
    cache.append(0, batch, ones(3, 2), ones(3, 2))
    _, lse = cache.attend(0, batch, ones(3, 4), lse=True)
    np.testing.assert_allclose(lse[:, 0], 8 + np.log([11, 12, 12]), rtol=1e-6)
    cache.accept(root, [a, c])
    assert cache.length(root) == 12
    left, right = cache.fork(root, 2)
    batch = cache.batch([(left, 1), (right, 1)])
    assert batch.rows == 2 and batch.positions == [12, 12]
    assert cache.advance(batch) == "unchanged"
    cache.prune(left)
    with pytest.raises(ValueError, match="is not a node of this forest"):
        cache.prune(left)
    with pytest.raises(ValueError, match="q_heads is 3; it must be a positive multiple"):
        deft.TreeCache(layers=1, heads=(3, 2, 64), capacity_bytes=1 << 20)


def test_the_types_are_there():
    folder = pathlib.Path(deft.__file__).parent
    assert (folder / "py.typed").exists() and (folder / "_deft.pyi").exists()
    stub = (folder / "_deft.pyi").read_text()
    for kind in (deft._deft.Plan, deft._deft.Batch, deft._deft.TreeCache):
        for name in vars(kind):
            assert name.startswith("_") or f"def {name}(" in stub, name
