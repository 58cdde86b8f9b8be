#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the data of the demo: three-digit addition with the working written out.

    make_demo_data.py DIRECTORY [--sft-rows N]

writes into DIRECTORY
    train.jsonl   prompts and answers for reinforcement learning
    eval.jsonl    held-out prompts and answers
    sft.jsonl     prompts and worked responses for the supervised warm start, by a teacher with gaps
    start/        a model folder without weights: config.json, generation_config.json, tokenizer.json
The same arguments give the same bytes everywhere. The three sets share no prompt.

The teacher of the supervised set knows the procedure but not the whole addition table: where a column
adds one of GUESSED_SUMS pairs of digits, it writes one of GUESSES totals by chance and carries on from
there. So the base model learns to guess there too, right or wrong, and only the reward tells it which.
"""

import argparse
import hashlib
import json
import pathlib

TRAIN_ROWS = 4096
EVAL_ROWS = 256
GUESSED_SUMS = 30  # of the 100 ordered pairs of digits
GUESSES = 5  # neighbouring totals, the right one among them


def hashed(text):
    return int.from_bytes(hashlib.sha256(b"halfstep demo " + text.encode()).digest()[:8], "big")


def pairs_in_order():
    """All pairs of three-digit numbers, shuffled by a hash that every Python computes alike."""
    pairs = [(a, b) for a in range(100, 1000) for b in range(100, 1000)]
    pairs.sort(key=lambda pair: hashed("%d+%d" % pair))
    return pairs


def guessed_sums():
    """Ordered pairs of digits, chosen by a hash."""
    pairs = [(x, y) for x in range(10) for y in range(10)]
    pairs.sort(key=lambda pair: hashed("digits %d+%d" % pair))
    return set(pairs[:GUESSED_SUMS])


def guess(total, text):
    """One of GUESSES neighbouring totals of two digits and a carry, by the hash of `text`."""
    lowest = min(max(total - GUESSES // 2, 0), 19 - GUESSES + 1)
    return lowest + hashed(text) % GUESSES


def prompt(a, b):
    return f"{a}+{b}="


def worked_response(a, b, guessed):
    """Column by column from the right, with the carry: 347+586= -> 7+6=13, 4+8+1=13, 3+5+1=9, 933"""
    steps = []
    carry = 0
    answer = 0
    for place in (1, 10, 100):
        x, y = a // place % 10, b // place % 10
        total = x + y + carry
        if (x, y) in guessed:
            total = guess(total, f"{a}+{b} at {place}")
        steps.append(f"{x}+{y}+{carry}={total}" if carry else f"{x}+{y}={total}")
        carry = total // 10
        answer += total % 10 * place
    return ", ".join(steps) + f", {answer + 1000 * carry}"


def byte_level_alphabet():
    """The printable stand-in of each byte, as in GPT-2's byte-level BPE."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_in = {byte: chr(byte) for byte in printable}
    shifted = 0
    for byte in range(256):
        if byte not in stand_in:
            stand_in[byte] = chr(256 + shifted)
            shifted += 1
    return [stand_in[byte] for byte in range(256)]


def tokenizer():
    """Byte-level BPE without merges: one token per byte, and one that ends a response."""
    vocabulary = {character: byte for byte, character in enumerate(byte_level_alphabet())}
    end = {
        "id": 256,
        "content": "<|endoftext|>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


MODEL_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "torch_dtype": "float16",
    "vocab_size": 257,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "eos_token_id": 256,
}

GENERATION_CONFIG = {"eos_token_id": 256, "do_sample": True, "temperature": 1.0}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--sft-rows", type=int, default=65536)
    arguments = parser.parse_args()
    directory = arguments.directory
    start = directory / "start"
    start.mkdir(parents=True, exist_ok=True)

    pairs = pairs_in_order()
    held_out, rest = pairs[:EVAL_ROWS], pairs[EVAL_ROWS:]
    train, rest = rest[:TRAIN_ROWS], rest[TRAIN_ROWS:]
    guessed = guessed_sums()
    for name, rows in (("train", train), ("eval", held_out)):
        write_jsonl(
            directory / f"{name}.jsonl",
            [{"prompt": prompt(a, b), "answer": str(a + b)} for a, b in rows],
        )
    write_jsonl(
        directory / "sft.jsonl",
        [
            {"prompt": prompt(a, b), "response": worked_response(a, b, guessed)}
            for a, b in rest[: arguments.sft_rows]
        ],
    )
    write_json(start / "config.json", MODEL_CONFIG)
    write_json(start / "generation_config.json", GENERATION_CONFIG)
    write_json(start / "tokenizer.json", tokenizer())


if __name__ == "__main__":
    main()
