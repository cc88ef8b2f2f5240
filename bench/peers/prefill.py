"""Times others' attention on prompts, as `deft-bench prefill` times ours: PyTorch's scaled dot product attention, and
FlashAttention 3 where the wheel tokenspeed-fa3 is installed.

Causal, 32 query heads and 8 KV heads of 128, bf16; one replayed CUDA graph with an L2 that a 256 MB read has emptied;
median of 30 replays after 5. Prints a line for each that takes the shape. Needs a GPU and PyTorch.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

try:
    from flash_attn_interface import flash_attn_func
except ImportError:
    flash_attn_func = None

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
TOKENS = (2048, 8192, 32768)
WARMUP, MEASURED = 5, 30


def median_us(run):
    flush = torch.zeros(64 << 20, dtype=torch.int32, device="cuda")
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(WARMUP + MEASURED):
        flush.sum()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1000 * begin.elapsed_time(end))
    return sorted(times[WARMUP:])[MEASURED // 2]


def sdpa(backend, q, k, v):
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def flash_3(q, k, v):
    out = flash_attn_func(q, k, v, causal=True)
    return out[0] if isinstance(out, tuple) else out


def peers(q, k, v):
    """Each peer's name and call; `q`, `k` and `v` are `[1, heads, tokens, head_dim]`."""
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        yield backend.name, lambda backend=backend: sdpa(backend, q, k, v)
    if flash_attn_func is not None:
        by_token = [rows.transpose(1, 2).contiguous() for rows in (q, k, v)]
        yield "FLASH_ATTENTION_3", lambda: flash_3(*by_token)


def main():
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    for tokens in TOKENS:
        shapes = [(1, HEADS, tokens, HEAD_DIM)] + 2 * [(1, KV_HEADS, tokens, HEAD_DIM)]
        q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
        flops = 2 * tokens * (tokens + 1) * HEADS * HEAD_DIM
        for name, run in peers(q, k, v):
            try:
                us = median_us(run)
            except RuntimeError as error:
                print(f"{tokens:6} tokens, {name}: {str(error).splitlines()[0]}")
                continue
            print(f"{tokens:6} tokens, {name}: {us:9.1f} us, {flops / us / 1e6:5.1f} TFLOP/s")


if __name__ == "__main__":
    main()
