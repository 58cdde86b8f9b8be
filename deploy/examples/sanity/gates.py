#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of the sanity test's model in docs/experiments/mismatch.md.

    gates.py WORK_DIRECTORY PAGE.md

reads WORK_DIRECTORY/mismatch/NAME/mismatch.json, which `run.sh WORK_DIRECTORY mismatch` made, and
replaces what stands in PAGE.md between <!-- table NAME --> and <!-- end -->.
"""

import argparse
import json
import pathlib

import tables


def short(value):
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def figure(value):
    return f"{short(value['value'])} [{short(value['low'])}, {short(value['high'])}]"


def inverse(ratio):
    """Of FP16 as a multiple of BF16: BF16 as a multiple of FP16."""
    return {"value": 1 / ratio["value"], "low": 1 / ratio["high"], "high": 1 / ratio["low"]}


def verdict(passed):
    return "met" if passed else "**missed**"


class Study:
    def __init__(self, path):
        self.cells = {
            (cell["rollout"], cell["learner"]): cell
            for cell in json.loads(path.read_text())["cells"]
        }

    def __getitem__(self, pair):
        return self.cells[pair]

    def metric(self, pair, name):
        return self.cells[pair]["metrics"][name]


def gates_table(study):
    fp16, bf16 = ("fp16", "fp16"), ("bf16", "bf16")
    rows = []

    def ratio(name, values, least, expected):
        times = inverse(values[0]["ratio"])
        rows.append([name, *map(figure, values), "x " + figure(times), f">= {least}", expected])
        rows[-1].append(verdict(times["low"] >= least))

    for side in ("rollout", "learner"):
        ratio(
            f"{side} against its own FP32, RMS of d",
            [study[pair][f"{side}_to_own_fp32"]["rms"] for pair in (fp16, bf16)],
            5,
            "7 to 8.3",
        )
    for name, key, least, expected in (
        ("mean abs d", "abs_mean", 3, "4 to 8"),
        ("k3", "k3", 12, "24 to 68"),
        ("p99 of abs d", "abs_p99", 3, "5 to 8"),
        ("KL of whole responses", "sequence_kl", 8, "24 to 64"),
    ):
        ratio(name, [study.metric(pair, key) for pair in (fp16, bf16)], least, expected)
    slopes = [study.metric(pair, "slope_per_1000_tokens") for pair in (fp16, bf16)]
    rows.append(["slope of the sum of d per 1000 tokens", *map(figure, slopes), "", "", "", ""])
    for name, key, most in (("mean abs d", "abs_mean", 3e-3), ("k3", "k3", 5e-5)):
        value = study.metric(fp16, key)
        rows.append([f"{name}, FP16 alone", figure(value), "", "", f"<= {most:g}", ""])
        rows[-1].append(verdict(value["high"] <= most))
    for pair in (("fp16", "bf16"), ("bf16", "fp16")):
        part = study.metric(pair, "abs_mean")["ratio"]
        name = f"mean abs d of {pair[0]}/{pair[1]} over BF16/BF16"
        rows.append([name, "", "", "x " + figure(part)])
        rows[-1] += [">= 0.6", "0.82 to 0.97", verdict(part["low"] >= 0.6)]
    head = ["figure", "FP16/FP16", "BF16/BF16", "BF16 over FP16", "gate", "expected", ""]
    return tables.table(head, rows)


def matrix_table(study):
    rows = []
    for pair, cell in study.cells.items():
        metrics = cell["metrics"]
        rows.append(
            [*pair, cell["responses"], cell["tokens"]]
            + [figure(metrics[key]) for key in ("abs_mean", "abs_p99", "k3", "sequence_kl")]
            + [f"{100 * metrics['bit_equal_share']['value']:.0f} %"]
        )
    head = ["rollout", "learner", "responses", "tokens", "mean abs d", "p99 abs d", "k3"]
    return tables.table(head + ["KL of whole responses", "bit-equal"], rows)


def seeds_table(study):
    rows = []
    for pair in (("fp16", "fp16"), ("bf16", "bf16")):
        for i, seed in enumerate(study[pair]["by_seed"]):
            rows.append(
                [f"{pair[0]}/{pair[1]}", i + 1, seed["tokens"]]
                + [tables.number(seed[key]) for key in ("abs_mean", "abs_p99", "k3", "sequence_kl")]
            )
    head = ["rollout/learner", "seed", "tokens", "mean abs d", "p99 abs d", "k3"]
    return tables.table(head + ["KL of whole responses"], rows)


def bitwise_table(folder):
    rows = []
    for precision in ("fp16", "bf16", "fp32"):
        cell = Study(folder / f"bitwise-{precision}" / "mismatch.json")[precision, precision]
        metrics = cell["metrics"]
        rows.append(
            [precision, cell["responses"], cell["tokens"]]
            + [tables.number(metrics[key]["value"]) for key in ("abs_max", "k3")]
            + [f"{100 * metrics['bit_equal_share']['value']:.0f} %"]
        )
    head = ["both sides", "responses", "tokens", "largest abs d", "k3", "bit-equal"]
    return tables.table(head, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("page", type=pathlib.Path)
    arguments = parser.parse_args()
    folder = arguments.work / "mismatch"
    study = Study(folder / "fast" / "mismatch.json")
    tables.fill(
        arguments.page,
        {
            "gates": lambda: gates_table(study),
            "matrix": lambda: matrix_table(study),
            "seeds": lambda: seeds_table(study),
            "bitwise": lambda: bitwise_table(folder),
        },
    )


if __name__ == "__main__":
    main()
