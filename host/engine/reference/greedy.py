"""Greedy continuations and logits of a GGUF model by transformers, for tests/smollm2.rs.

Weights are dequantised to f32 by the `gguf` package; everything is computed by PyTorch on the CPU.

    python greedy.py MODEL.gguf > ../tests/data/smollm2.json

Needs: pip install torch transformers accelerate gguf (any recent versions; it prints which).
"""

import json
import os
import sys

import gguf
import torch
import transformers

TOKENS = 64
TOP = 5
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    "Once upon a time, in a village by the sea,",
    CHAT.format("What is the capital of France?"),
    "def fibonacci(n):\n    ",
    CHAT.format("Write three sentences about why the sky is blue."),
    "1, 2, 4, 8, 16, 32,",
]


def continue_greedily(model, ids):
    """Tokens, and for each the largest logits before it: [[token, logit], ...]."""
    tokens, tops = [], []
    cache = None
    fed = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(TOKENS):
            out = model(fed, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[0, -1].double()
            values, indices = logits.topk(TOP)
            tops.append([[int(i), round(float(v), 5)] for v, i in zip(values, indices)])
            tokens.append(int(indices[0]))
            fed = torch.tensor([[tokens[-1]]])
    return tokens, tops


def main():
    path = os.path.abspath(sys.argv[1])
    folder, name = os.path.split(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    runs = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tokens, tops = continue_greedily(model, ids)
        runs.append({"prompt": prompt, "ids": ids, "tokens": tokens, "tops": tops})
        print(repr(prompt), "->", repr(tokenizer.decode(tokens)), file=sys.stderr)
    versions = {m.__name__: getattr(m, "__version__", None) for m in (torch, transformers)}
    versions["gguf"] = __import__("importlib.metadata").metadata.version("gguf")
    runs = ",\n".join(json.dumps(run) for run in runs)
    print(f'{{"by": {json.dumps(versions)}, "model": {json.dumps(name)}, "runs": [\n{runs}\n]}}')


if __name__ == "__main__":
    main()
