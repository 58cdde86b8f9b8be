#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the data of the sanity test: sums of 26 digits with every running total written out.

    make_sanity_data.py DIRECTORY [--sft-rows N] [--candidates N]

writes into DIRECTORY
    candidates.jsonl   prompts and answers, for `halfstep dataset sanity` to choose from
    sft.jsonl          prompts and worked responses for the supervised warm start
    start/             a model folder without weights
The same arguments give the same bytes everywhere. The sets share no prompt.

A prompt names its digits a to z, and a response of about 270 tokens adds them one by one:
    a7b8c3...z4=  ->  0+a7=7, 7+b8=15, 15+c3=18, ..., 130+z4=134, 134

The teacher of the supervised set does not know the whole addition table: where a step adds one of
GUESSED_SUMS pairs of digits (the last one of the total, and the next), it writes the right total or
one more, by chance, and carries on from there. So the base model learns to guess there too, and only
the reward tells it which is right: a prompt with n such steps starts at an accuracy of about 1/2^n.
"""

import argparse
import json
import pathlib
import string
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "demo"))
import make_demo_data as demo  # noqa: E402: its folder has to be found first

GUESSED_SUMS = 10  # of the 90 pairs of a last digit and a digit to add

MODEL_CONFIG = {
    **demo.MODEL_CONFIG,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


def digits_of(name):
    """26 digits from 1 to 9 that follow from the row's name alone."""
    return [1 + demo.hashed(f"sanity {name} {letter}") % 9 for letter in string.ascii_lowercase]


def prompt(digits):
    return "".join(f"{l}{d}" for l, d in zip(string.ascii_lowercase, digits)) + "="


def guessed_sums():
    """Pairs of a total's last digit and a digit to add, chosen by a hash."""
    pairs = [(ones, digit) for ones in range(10) for digit in range(1, 10)]
    pairs.sort(key=lambda pair: demo.hashed("sanity guess %d+%d" % pair))
    return set(pairs[:GUESSED_SUMS])


def worked_response(name, digits, guessed):
    steps = []
    total = 0
    for letter, digit in zip(string.ascii_lowercase, digits):
        next_total = total + digit
        if (total % 10, digit) in guessed:
            next_total += demo.hashed(f"sanity {name} guess at {letter}") % 2
        steps.append(f"{total}+{letter}{digit}={next_total}")
        total = next_total
    return ", ".join(steps) + f", {total}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--sft-rows", type=int, default=32768)
    parser.add_argument("--candidates", type=int, default=192)
    arguments = parser.parse_args()
    start = arguments.directory / "start"
    start.mkdir(parents=True, exist_ok=True)

    candidates = [digits_of(f"candidate {i}") for i in range(arguments.candidates)]
    demo.write_jsonl(
        arguments.directory / "candidates.jsonl",
        [{"prompt": prompt(digits), "answer": str(sum(digits))} for digits in candidates],
    )
    taken = {tuple(digits) for digits in candidates}
    guessed = guessed_sums()
    rows = []
    for i in range(arguments.sft_rows):
        name = f"sft {i}"
        digits = digits_of(name)
        if tuple(digits) not in taken:
            rows.append(
                {"prompt": prompt(digits), "response": worked_response(name, digits, guessed)}
            )
    demo.write_jsonl(arguments.directory / "sft.jsonl", rows)
    demo.write_json(start / "config.json", MODEL_CONFIG)
    demo.write_json(start / "generation_config.json", demo.GENERATION_CONFIG)
    demo.write_json(start / "tokenizer.json", demo.tokenizer())


if __name__ == "__main__":
    main()
