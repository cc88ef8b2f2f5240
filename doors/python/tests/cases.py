"""doors/cases.json, the table that every door is tested with: what its cases are made of, and what is right."""

import json
import pathlib

import deft
import numpy as np

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


class Numpy:
    """Where a case's arrays are, and whose."""

    gpu = -1

    def put(self, memory: np.ndarray):
        return memory

    def get(self, array) -> np.ndarray:
        return array

    def strided(self, memory, begin: int, shape, strides):
        size = memory.itemsize
        return np.lib.stride_tricks.as_strided(memory.reshape(-1)[begin:], shape, [stride * size for stride in strides])

    def narrow(self, array):
        return array.astype(np.float16)

    def moved(self, memory, array):
        """The array one byte further on."""
        moved = np.zeros(array.nbytes + 1, dtype=np.uint8)[1:]
        return moved.view(array.dtype).reshape(array.shape)


class Problem:
    def __init__(self, case: dict, place=Numpy()) -> None:
        self.case, self.place = case, place
        self.dtype = dtype = "bf16" if place.gpu >= 0 and case["dtype"] == "f32" else case["dtype"]
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
        self.memory = of_type(dtype, values(1, count))
        self.halves = [(begin, (blocks, page, kv, dim), [*strides, 1]) for begin in begins]
        self.lens, self.parents = case["lens"], case.get("parents")
        width = max((len(row) for row in case["tables"]), default=0)
        self.tables = np.array([row + [-1] * (width - len(row)) for row in case["tables"]], dtype=np.int32)
        self.tables = self.tables.reshape(len(case["tables"]), width)
        drafts = [len(draft) for draft in self.parents] if self.parents else None
        self.queries = case.get("queries", drafts)
        self.counts = self.queries or [1] * len(self.lens)
        self.q = of_type(dtype, values(2, sum(self.counts) * q_heads * dim)).reshape(-1, q_heads, dim)

    def error(self) -> str:
        own = self.case.get("gpu error", "") if self.place.gpu >= 0 else ""
        return own or self.case.get("error", "")

    def masks(self):
        if "masks" in self.case:
            return np.array(self.case["masks"], dtype=np.uint64)[:, None]
        return deft.ancestor_masks(self.parents) if self.parents else None

    def caches(self, memory=None):
        """K and V as the case lays them out, in its order of axes."""
        memory = self.place.put(self.memory) if memory is None else memory
        at = [0, 2, 1, 3] if self.order == "HND" else [0, 1, 2, 3]
        for begin, shape, strides in self.halves:
            yield self.place.strided(memory, begin, [shape[i] for i in at], [strides[i] for i in at])

    def run(self):
        place, memory = self.place, self.place.put(self.memory)
        q = place.put(self.q)
        arrays = dict(zip(["k", "v"], self.caches(memory)), q=q, out=place.put(np.full_like(self.q, 7)))
        name, _, what = self.case.get("change", "").partition(".")
        begin, shape, strides = self.halves[0]
        if what == "strides":
            arrays[name] = place.strided(memory, begin, shape, [*strides[:3], 2])
        elif (name, what) == ("out", "data"):
            q_heads, _, dim = self.heads
            arrays[name] = place.strided(memory, begin, self.q.shape, [q_heads * dim, dim, 1])
        elif what == "data":
            arrays[name] = place.moved(memory, arrays[name])
        elif (name, what) == ("q", "shape"):
            arrays[name] = q[:-1]
        elif what == "shape":
            arrays[name] = arrays[name][:, : shape[1] // 2]
        elif what == "dtype":
            arrays[name] = place.narrow(q)
        plan = deft.Plan(
            self.tables,
            np.array(self.lens, dtype=np.int32),
            heads=self.heads,
            page_size=self.case["page_size"],
            dtype=NAMES[self.dtype],
            gpu=place.gpu,
            queries=self.queries,
            masks=self.masks(),
        )
        out = arrays["out"]
        try:
            _, lse = deft.attend(plan, arrays["q"], arrays["k"], arrays["v"], order=self.order, out=out, lse=True)
        except ValueError:
            if name != "out":
                assert (place.get(out) == 7).all(), "nothing is written"
            raise
        return plan, place.get(out), place.get(lse)

    def right(self):
        """Attention of each sequence for itself, in f64."""
        (q_heads, kv_heads, dim), page, row = self.heads, self.case["page_size"], 0
        out, lse = np.zeros(self.q.shape), np.full(self.q.shape[:2], -np.inf)
        k, v = (to_f64(np.ascontiguousarray(Numpy().strided(self.memory, *half))) for half in self.halves)
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

    def check(self) -> None:
        """Runs the case and holds what comes against what it says."""
        try:
            plan, out, lse = self.run()
        except ValueError as refused:
            assert self.error() and self.error() in str(refused), f"{refused}, not {self.error()}"
            return
        assert not self.error(), self.error()
        right, right_lse = self.right()
        far, norm = np.linalg.norm(to_f64(out) - right, axis=-1), np.linalg.norm(right, axis=-1)
        assert (far <= (1e-5 if self.dtype == "f32" else 5e-3) * np.maximum(norm, 1e-30)).all(), (far / norm).max()
        np.testing.assert_allclose(lse, right_lse, atol=1e-3)
        assert plan.rows == len(out)
        if "tokens" in self.case:
            assert plan.tokens == tuple(self.case["tokens"])
