"""Trains LESS's feature maps (arXiv 2402.09398) on what `deft-bench trace` wrote of texts; docs/retention.md has the commands.

Each KV head is trained by itself, all of them at once: attention over the rows that H2O keeps, with the residue of the
others, is to give what attention over all rows gives (mean squared error, Adam). Weights are taken from the step that was
best on a text that is not trained on; a head that the residue does not help there gets one that is nothing.
"""

import argparse
import json
import math
import struct
import time

import torch
import torch.nn.functional as F

TYPES = {"F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32}


def read(path):
    """q [layers, kv_heads, group, tokens, d], k and v [layers, kv_heads, tokens, d], f32 on the GPU."""
    raw = bytearray(open(path, "rb").read())
    (size,) = struct.unpack_from("<Q", raw)
    header, data = json.loads(raw[8 : 8 + size]), torch.frombuffer(raw, dtype=torch.uint8)

    def tensor(name):
        entry = header[name]
        begin, end = (8 + size + at for at in entry["data_offsets"])
        # Copied to where every type is aligned.
        return data[begin:end].clone().view(TYPES[entry["dtype"]]).view(entry["shape"]).cuda().float()

    layers = sum(name.endswith(".q") for name in header)
    q, k, v = (torch.stack([tensor(f"layers.{i}.{x}") for i in range(layers)]) for x in "qkv")
    k, v = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
    return q.transpose(1, 2).unflatten(1, (k.shape[1], -1)).contiguous(), k, v


def write(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.detach().float().cpu().contiguous().numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def attention(q, k, v, hidden):
    """Output and LSE of q [kv_heads, group, n, d] where `hidden`, [kv_heads, 1, n, tokens], hides nothing."""
    logits = q @ k[:, None].transpose(-1, -2) / math.sqrt(q.shape[-1])
    logits.masked_fill_(hidden, -math.inf)
    return logits.softmax(-1) @ v[:, None], logits.logsumexp(-1)


def cases(q, k, v, args):
    """Prompts of the text's first tokens: what H2O drops of them, and what the queries behind them get with and without."""
    layers, heads, _, tokens, _ = q.shape
    at = torch.arange(tokens, device="cuda")
    found = []
    for cut in range(args.queries, tokens - args.queries + 1, args.stride):
        cut -= cut % 64  # pages
        behind = slice(cut, cut + args.queries)
        later = (at[None] > at[behind, None])[None, None, :, : behind.stop]
        parts = {part: {"cut": cut, "part": part} for part in args.parts}
        for case in parts.values():
            case["dropped"] = torch.zeros(layers, heads, cut, dtype=torch.bool, device="cuda")
        rows = {part: [] for part in args.parts}
        for layer in range(layers):
            ql, kl, vl = (x[layer][..., : behind.stop, :] for x in (q, k, v))
            prompt = (at[None, :cut] > at[:cut, None])[None, None]
            logits = ql[..., :cut, :] @ kl[:, None, :cut].transpose(-1, -2) / math.sqrt(ql.shape[-1])
            score = logits.masked_fill_(prompt, -math.inf).softmax(-1).sum((1, 2))
            score[:, cut - args.recent :] = math.inf
            order = score.argsort(-1, descending=True)
            full = attention(ql[..., behind, :], kl, vl, later)
            for part, case in parts.items():
                room = max(int(cut * part), args.recent)
                case["dropped"][layer].scatter_(-1, order[:, room:], True)
                gone = F.pad(case["dropped"][layer], (0, args.queries))[:, None, None]
                rows[part].append((*full, *attention(ql[..., behind, :], kl, vl, later | gone)))
        for part, case in parts.items():
            case |= zip(("full", "full_lse", "kept", "kept_lse"), map(torch.stack, zip(*rows[part])))
            case["base"] = (case["kept"] - case["full"]).square().mean((2, 3, 4))
            found.append(case)
    return found


class Maps(torch.nn.Module):
    def __init__(self, q, k, hidden, rank):
        super().__init__()
        layers, heads, group, _, d = q.shape

        def gauss(*shape):
            return torch.randn(*shape, device="cuda")

        def size(x):
            return x.square().mean((-1, -2), keepdim=True).sqrt()

        weights = {
            "phi_w1": gauss(layers, heads, group, d, hidden) / d**0.5 / size(q),
            "phi_w2": gauss(layers, heads, group, hidden, rank) * 2 / hidden**0.5,
            "psi_w1": gauss(layers, heads, d, hidden) / d**0.5 / size(k),
            "psi_w2": gauss(layers, heads, hidden, rank) * 2 / hidden**0.5,
            "psi_w3": gauss(layers, heads, rank, rank) / rank**0.5,
            "log_s1": torch.zeros(layers, heads, rank, device="cuda"),
            "s2": torch.zeros(layers, heads, rank, device="cuda"),
        }
        self.w = torch.nn.ParameterDict(weights)

    def features(self, x, name, drop):
        inner = F.dropout(F.gelu(x @ self.w[name + "_w1"]), drop)
        return F.gelu(inner @ self.w[name + "_w2"])

    def forward(self, case, q, k, v, drop=0.0):
        """Attention over what is kept, with the residue; and the logarithm of the residue's weight."""
        cut, n = case["cut"], case["kept"].shape[-2]
        phi = self.features(q[..., cut : cut + n, :], "phi", drop).abs()
        u = self.features(k[..., :cut, :], "psi", drop) * self.w["log_s1"].exp()[:, :, None]
        psi = (u + self.w["s2"][:, :, None] * (u @ self.w["psi_w3"])).abs()
        psi = psi * case["dropped"][..., None]
        h = psi.transpose(-1, -2) @ v[..., :cut, :]
        weight = (phi @ psi.sum(-2)[:, :, None, :, None]).squeeze(-1).clamp(min=1e-6)
        lse = weight.log()
        residue = (phi @ h[:, :, None]) / weight[..., None]
        share = torch.sigmoid(lse - case["kept_lse"])[..., None]
        return case["kept"] + share * (residue - case["kept"]), lse

    def error(self, case, *rows, drop=0.0):
        """By layer and KV head, of what dropping does: 1 is no better than without the residue."""
        squares = (self(case, *rows, drop=drop)[0] - case["full"]).square().mean((2, 3, 4))
        return squares / case["base"].clamp(min=1e-12)


@torch.no_grad()
def scale(maps, cases, rows):
    """Starts with residues that weigh what was dropped, in the mean over queries."""
    off = []
    for case in cases:
        kept = (case["kept_lse"] - case["full_lse"]).exp().clamp(max=1 - 1e-6)
        dropped = case["full_lse"] + torch.log1p(-kept)
        off.append((dropped - maps(case, *rows)[1]).mean((2, 3)))
    maps.w["log_s1"] += torch.stack(off).mean(0)[..., None]


def train(maps, train, held, args):
    (trained, rows), (judged, held_rows) = train, held
    optimizer = torch.optim.Adam(maps.parameters(), lr=args.rate)
    best, chosen, step, begin = None, {}, 0, time.time()
    while (done := (time.time() - begin) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        if step % args.judge == 0:
            with torch.no_grad():
                error = torch.stack([maps.error(case, *held_rows) for case in judged]).mean(0)
                best = torch.full_like(error, math.inf) if best is None else best
                better = error < best
                for name, weight in maps.w.items():
                    kept = chosen.setdefault(name, weight.detach().clone())
                    kept[better] = weight.detach()[better]
                best = torch.minimum(error, best)
                seen = torch.stack([maps.error(case, *rows).mean() for case in trained]).mean()
            errors = f"trained on {seen:.4f}  held {error.mean():.4f}  best {best.mean():.4f}"
            print(f"{step:6} {time.time() - begin:6.1f} s  {errors}", flush=True)
        case = trained[int(torch.randint(len(trained), ()))]
        loss = maps.error(case, *rows, drop=args.drop).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    return chosen, best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="a trace, which is trained on")
    parser.add_argument("held", help="a trace of another text, which chooses the step")
    parser.add_argument("out", help="the weights, a safetensors file")
    parser.add_argument("--parts", type=lambda text: [float(x) for x in text.split(",")], default=[0.1, 0.25])
    parser.add_argument("--recent", type=int, default=64)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--drop", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--judge", type=int, default=250)
    args = parser.parse_args()
    torch.manual_seed(1)
    rows, held = read(args.text), read(args.held)
    with torch.no_grad():
        both = (cases(*rows, args), rows), (cases(*held, args), held)
    maps = Maps(*rows[:2], args.hidden, args.rank)
    scale(maps, *both[0])
    weights, best = train(maps, *both, args)
    helps = best < 1
    weights["s1"] = weights.pop("log_s1").exp() * helps[..., None]
    best = best.clamp(max=1)
    print("held, by layer:", " ".join(f"{x:.2f}" for x in best.mean(1).tolist()))
    print(f"{int(helps.sum())} of {helps.numel()} KV heads are helped; error {best.mean():.3f} of what it was")
    tensors = {}
    for layer in range(rows[0].shape[0]):
        for name, weight in weights.items():
            of = weight[layer].flatten(0, 1) if name.startswith("phi") else weight[layer]
            name = name.replace("_", ".") if "_" in name else f"psi.{name}"
            tensors[f"layers.{layer}.{name}"] = of
    write(args.out, tensors)


if __name__ == "__main__":
    main()
