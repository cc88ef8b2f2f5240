"""What a step reads of a tree of thoughts, drawn: python tree.py [FILE.svg]

The tree is found in block tables, as an engine with a paged cache has them; no token of it is known. Needs matplotlib.
"""

# %% A prompt of 40 blocks, three thoughts below it, and so on: every leaf is a sequence with a block table.
import sys

import deft
import matplotlib
import numpy as np

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "deft", "svg.fonttype": "none", "font.size": 9})
import matplotlib.pyplot as plt  # noqa: E402

PAGE, HEADS, LAYERS, BYTES = 16, (32, 8, 128), 32, 2
FANS = [(40, 3), (12, 2), (9, 3), (6, 0)]  # blocks of a node, children of each

tables: list[list[int]] = []
used = 0


def thought(path: list[int], level: int) -> None:
    global used
    blocks, children = FANS[level]
    path = path + list(range(used, used + blocks))
    used += blocks
    for _ in range(children):
        thought(path, level + 1)
    if not children:
        tables.append(path)


thought([], 0)
lens = [len(path) * PAGE for path in tables]
block_tables = np.array(tables, dtype=np.int32)

# %% The plan: who reads what, once.
plan = deft.Plan(block_tables, lens, heads=HEADS, page_size=PAGE, dtype="bfloat16")
seen, different = plan.tokens
token = 2 * HEADS[1] * HEADS[2] * LAYERS * BYTES
print(f"{len(lens)} sequences see {seen} tokens, {different} different ones: {seen / different:.1f} times as many")

# %% The same plan gives attention; here of a layer with f32 on the CPU.
small = deft.Plan(block_tables, lens, heads=(4, 2, 64), page_size=PAGE)
k, v = np.random.default_rng(0).standard_normal((2, used, PAGE, 2, 64), dtype=np.float32)
out, lse = deft.attend(small, np.ones((len(lens), 4, 64), dtype=np.float32), k, v, lse=True)
assert out.shape == (len(lens), 4, 64) and np.isfinite(lse).all()

# %% The picture: a row a sequence, a column a block; blocks that sequences share have one color.
owners = {block: {row for row, path in enumerate(tables) if block in path} for path in tables for block in path}
shares = np.array([[len(owners[block]) for block in path] for path in tables])
figure, (tree, bars) = plt.subplots(1, 2, figsize=(8.6, 3.4), width_ratios=[3, 1], layout="constrained")
image = tree.imshow(shares, cmap="viridis_r", aspect="auto", interpolation="nearest", extent=(0, len(shares[0]), len(shares), 0))
for row, path in enumerate(tables[1:], 1):
    fork = next(at for at, pair in enumerate(zip(path, tables[row - 1])) if pair[0] != pair[1])
    tree.plot([fork, len(path)], [row, row], color="black", linewidth=1)
tree.set(xlabel=f"block of {PAGE} tokens", ylabel="sequence", title="Sequences that read a block")
figure.colorbar(image, ax=tree, ticks=sorted({int(count) for count in np.unique(shares)}))
for at, (count, label) in enumerate([(seen, "each for itself"), (different, "as a tree")]):
    bars.bar(at, count * token / 1e6, color=["#bbbbbb", "#31688e"][at], label=label)
    bars.text(at, count * token / 1e6, f"{count * token / 1e6:,.0f} MB\n{label}", ha="center", va="bottom")
bars.set(title="K and V read a step", xticks=[], ylabel="MB", ylim=(0, seen * token / 1e6 * 1.25), xlim=(-0.7, 1.7))
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "tree.svg", metadata={"Date": None})
