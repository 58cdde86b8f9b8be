#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/model: tiny checkpoints with log-probs and gradients as transformers computes them.

Run once by hand; tests read only what it wrote. Versions used:
  torch 2.15.0, transformers 4.57.1, safetensors 0.8.0, numpy 2.4.6, Python 3.11 (CPU, FP32, eager attention)

  python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==4.57.1 safetensors==0.8.0 numpy==2.4.6
  venv/bin/python tests/golden/make_model_golden.py tests/golden/model

Each folder is a Hugging Face model plus golden.safetensors:
  tokens, lengths    int32: the sequences, one after another, and their lengths
  coefficients       F32 [predictions]: c, the weight of each log-prob in the loss
  log_probs          F32 [predictions]: log softmax(logits)[next token], sequence by sequence
  grad.NAME          F32: gradient of sum(c * log_probs) for each parameter NAME
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers import Qwen3Config, Qwen3ForCausalLM

LENGTHS = [47, 3, 33]
SIZES = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    attn_implementation="eager",
)


def rope_parameters_spelling(config):
    """The spelling of transformers 5: rope_theta and rope_scaling in one object."""
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    config.pop("rope_scaling", None)


CASES = {
    # Biases everywhere, tied, llama3 frequencies, one key-value head, F32 in two shards.
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            **SIZES,
            num_key_value_heads=1,
            head_dim=10,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rope_theta=5000.0,
            rope_scaling=dict(
                rope_type="llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
            eos_token_id=[2, 5],
        ),
        dict(dtype=torch.float32, max_shard_size="30KB", edit=None),
    ),
    # Biases on queries, keys and values; no grouping; untied; BF16.
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, num_key_value_heads=4, tie_word_embeddings=False, rope_theta=1e6),
        dict(dtype=torch.bfloat16, max_shard_size="1GB", edit=None),
    ),
    # Norm per head, grouped queries, head_dim unlike hidden / heads, tied, F16, the later RoPE spelling.
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(
            **SIZES,
            num_key_value_heads=2,
            head_dim=14,
            tie_word_embeddings=True,
            rope_theta=10000.0,
        ),
        dict(dtype=torch.float16, max_shard_size="1GB", edit=rope_parameters_spelling),
    ),
}


def randomise(model, dtype):
    """Values at which every part matters, rounded to what the file will hold."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = 0.25
            noise = torch.randn(parameter.shape) * deviation
            value = 1 + noise if "norm" in name else noise
            parameter.copy_(value.to(dtype).float())


def make(name, out):
    model_class, config, options = CASES[name]
    torch.manual_seed(sorted(CASES).index(name) + 1)
    model = model_class(config).float().eval()
    randomise(model, options["dtype"])

    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    sequences = [torch.randint(0, config.vocab_size, (n,)) for n in LENGTHS]
    coefficients = [torch.randn(n - 1) for n in LENGTHS]
    log_probs = []
    loss = torch.zeros(())
    for tokens, weight in zip(sequences, coefficients):
        logits = model(tokens[None]).logits[0, :-1].float()
        chosen = torch.log_softmax(logits, -1).gather(1, tokens[1:, None])[:, 0]
        log_probs.append(chosen.detach())
        loss = loss + (weight * chosen).sum()
    loss.backward()

    golden = {f"grad.{n}": p.grad.clone() for n, p in model.named_parameters()}
    golden["tokens"] = torch.cat(sequences).to(torch.int32)
    golden["lengths"] = lengths
    golden["coefficients"] = torch.cat(coefficients)
    golden["log_probs"] = torch.cat(log_probs)

    folder = out / name
    model.to(options["dtype"]).save_pretrained(folder, max_shard_size=options["max_shard_size"])
    (folder / "generation_config.json").unlink(missing_ok=True)
    if options["edit"]:
        path = folder / "config.json"
        text = json.loads(path.read_text())
        options["edit"](text)
        path.write_text(json.dumps(text, indent=2) + "\n")
    save_file(golden, folder / "golden.safetensors")


if __name__ == "__main__":
    for case in CASES:
        make(case, pathlib.Path(sys.argv[1]))
