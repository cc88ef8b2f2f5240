"""Times PyTorch's scaled dot product attention on prompts, as `deft-bench prefill` times ours.

Causal, 32 query heads and 8 KV heads of 128, bf16; one replayed CUDA graph with an L2 that a 256 MB read has emptied;
median of 30 replays after 5. Prints a line for each backend that takes the shape. Needs a GPU and PyTorch.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def main():
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    for tokens in TOKENS:
        shapes = [(1, HEADS, tokens, HEAD_DIM)] + 2 * [(1, KV_HEADS, tokens, HEAD_DIM)]
        q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
        flops = 2 * tokens * (tokens + 1) * HEADS * HEAD_DIM
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            def run():
                with sdpa_kernel(backend):
                    return torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, is_causal=True, enable_gqa=True
                    )
            try:
                us = median_us(run)
            except RuntimeError as error:
                print(f"{tokens:6} tokens, {backend.name}: {str(error).splitlines()[0]}")
                continue
            print(f"{tokens:6} tokens, {backend.name}: {us:9.1f} us, {flops / us / 1e6:5.1f} TFLOP/s")


if __name__ == "__main__":
    main()
