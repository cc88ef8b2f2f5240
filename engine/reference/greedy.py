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
from tokenizers import pre_tokenizers

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
MESSAGES = [
    {"role": "user", "content": "Hello, who are you?"},
    {"role": "assistant", "content": "I'm SmolLM."},
    {"role": "user", "content": "  Write <b>2</b> lines.\n"},
]
# For the tokenizer alone.
TEXTS = [
    "It's 3.14159 or so; we'll see 1234567890 \u00bd \u0663 things.",
    "  leading, trailing  \n\n\n\tand\t inner   spaces \r\n",
    "na\u00efve caf\u00e9 \u2014 \u65e5\u672c\u8a9e \u0e20\u0e32\u0e29\u0e32 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "fn main() { let x = vec![0u8; 1_000]; println!(\"{x:?}\"); } // DON'T i'VE they'd",
    "<|im_start|>system\nYou are.<|im_end|>\n<|endoftext|><|im_end| ><repo_name>x",
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
    # transformers does not read `tokenizer.ggml.pre`, which is "smollm": digits stay apart.
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
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
    texts = [[text, tokenizer(text, add_special_tokens=False)["input_ids"]] for text in TEXTS]
    chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    runs = ",\n".join(json.dumps(run) for run in runs)
    print(f'{{"by": {json.dumps(versions)}, "model": {json.dumps(name)},')
    print(f'"texts": {json.dumps(texts)},\n"messages": {json.dumps(MESSAGES)},\n"chat": {json.dumps(chat)},')
    print(f'"runs": [\n{runs}\n]}}')


if __name__ == "__main__":
    main()
