"""The package on doors/cases.json, the table that every door is tested with, and what only Python has."""

import pathlib

import deft
import numpy as np
import pytest
from cases import CASES, Problem


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_case_gives_what_it_says(case):
    Problem(case).check()


def test_one_call_gives_what_a_plan_gives():
    problem = Problem(CASES[8])
    k, v = problem.caches()
    _, expected, _ = problem.run()
    arguments = (problem.q, k, v, problem.tables, problem.lens)
    out = deft.verify(*arguments, problem.parents, dtype="bfloat16")
    np.testing.assert_array_equal(out, expected)
    for _ in range(2):  # the second takes the first one's plan
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


def test_a_gpu_that_is_not_there_is_named():
    problem = Problem(CASES[2])
    with pytest.raises(ValueError, match="no CUDA device"):
        deft.Plan(problem.tables, problem.lens, heads=problem.heads, page_size=16, dtype="bfloat16", gpu=99)
    with pytest.raises(ValueError, match="gpu is -2; it must be -1 for the CPU, or a GPU's number"):
        deft.Plan(problem.tables, problem.lens, heads=problem.heads, page_size=16, gpu=-2)


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
