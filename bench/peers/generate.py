"""Times a step of Hugging Face's `generate` with many branches below one prompt, as `deft-bench engine` times ours.

A Llama of the shape of 8B, random bf16 weights; `n` samples (`do_sample`, `num_return_sequences`) or beams of one
prompt. A step is the difference between two runs of different lengths, over their difference, so that the prompt
and what comes once fall out; the median of three. Prints a JSON object a line. Needs a GPU, PyTorch and transformers:

    python generate.py --contexts 1000 10000 20000 --branches 1 20 50
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

SHORT, LONG, RUNS = 8, 40, 3
SHAPE = dict(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=131072,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)


def load(attention):
    config = LlamaConfig(**SHAPE, attn_implementation=attention, dtype=torch.bfloat16)
    # Initial values of a trained model's size cost minutes on one core; any will do for a time.
    with torch.device("cuda"), transformers.initialization.no_init_weights():
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02)
    return model.eval()


def generated_s(model, prompt, tokens, how):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    out = model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0, **how)
    torch.cuda.synchronize()
    assert out.shape[1] == prompt.shape[1] + tokens
    return time.perf_counter() - begin


def step_ms(model, context, how):
    prompt = torch.randint(10, SHAPE["vocab_size"], (1, context), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    generated_s(model, prompt, SHORT, how)
    times = [
        generated_s(model, prompt, LONG, how) - generated_s(model, prompt, SHORT, how)
        for _ in range(RUNS)
    ]
    return {
        "ms_a_step": round(1000 * statistics.median(times) / (LONG - SHORT), 2),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
    }


def ways(branches):
    if branches == 1:
        return {"one sequence": dict(do_sample=True)}
    return {
        "samples": dict(do_sample=True, num_return_sequences=branches),
        "beams": dict(do_sample=False, num_beams=branches),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1000, 10000, 20000])
    parser.add_argument("--branches", type=int, nargs="+", default=[1, 20, 50])
    parser.add_argument("--attention", nargs="+", default=["sdpa", "flash_attention_2"])
    args = parser.parse_args()
    about = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(about), flush=True)
    for attention in args.attention:
        try:
            model = load(attention)
        except (ImportError, ValueError) as error:
            print(json.dumps({"attention": attention, "skipped": str(error).splitlines()[0]}), flush=True)
            continue
        for branches in args.branches:
            for name, how in ways(branches).items():
                for context in args.contexts:
                    row = {"attention": attention, "what": name, "branches": branches, "context": context}
                    try:
                        row |= step_ms(model, context, how)
                    except torch.OutOfMemoryError:
                        row["skipped"] = "out of memory"
                    torch.cuda.empty_cache()
                    print(json.dumps(row), flush=True)
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
