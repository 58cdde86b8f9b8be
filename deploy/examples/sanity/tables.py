#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/experiments/sanity.md from the runs: no figure is typed by hand.

    tables.py WORK_DIRECTORY PAGE.md

replaces what stands in PAGE.md between <!-- table NAME --> and <!-- end --> for each NAME below.
Accuracy is the mean reward of a window of steps. Runs that are not finished are left out, but for
those of the harder settings, whose table says how far they are.
"""

import argparse
import json
import math
import pathlib
import re
import statistics

WINDOW = 12  # steps, of 8 prompts each: about once through the set
SHORT_WINDOW = 3  # of the harder settings, which change in a few steps
PASSED = 0.95
COLLAPSED = 0.10  # below the best window


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Run:
    def __init__(self, folder):
        job = json.loads((folder / "job.json").read_text())
        self.name = folder.name
        self.seed = job["seed"]
        self.preset = job["algorithm"]["preset"]
        self.precision = (job["precision"]["rollout"], job["precision"]["learner"])
        self.profile = job["profile"]
        self.planned = job["steps"]
        self.rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "reward_mean" in row]
        variant = re.search(r"-(brisk|steep)-s\d+$", self.name)
        self.variant = variant[1] if variant else ""

    def cell(self):
        return (*self.precision, self.profile, self.preset, self.variant)

    def complete(self):
        return len(self.rows) == self.planned

    def windows(self, size):
        rewards = [row["reward_mean"] for row in self.rows]
        return [sum(rewards[i : i + size]) / size for i in range(len(rewards) - size + 1)]

    def steps_to_pass(self, size):
        for i, accuracy in enumerate(self.windows(size)):
            if accuracy >= PASSED:
                return i + size
        return None

    def values(self, key, rows=None):
        return [row[key] for row in rows or self.rows if row.get(key) is not None]

    def mean(self, key, rows=None):
        return statistics.mean(self.values(key, rows) or [math.nan])

    def median(self, key):
        return statistics.median(self.values(key) or [math.nan])


def percent(share):
    return f"{100 * share:.1f}"


def spread(values, form):
    """The least and the largest, or the one that all are."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def number(value):
    return "0" if value == 0 else f"{value:.2g}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def cells(runs):
    grouped = {}
    for run in runs:
        grouped.setdefault(run.cell(), []).append(run)
    return sorted(grouped.items(), key=lambda item: (item[0][3:], item[0][:3]))


def label(cell):
    rollout, learner, profile, preset, variant = cell
    return [
        f"`{preset}`" + (f", {variant}" if variant else ""),
        f"{rollout}/{learner}" + ("" if profile == "fast" else f" {profile}"),
    ]


def accuracy_table(runs, window):
    rows = []
    for cell, members in cells(runs):
        windows = [run.windows(window) for run in members]
        passed = [run.steps_to_pass(window) for run in members]
        reached = [steps for steps in passed if steps is not None]
        collapsed = sum(max(run) - run[-1] > COLLAPSED for run in windows)
        rows.append(
            label(cell)
            + [
                len(members),
                spread([len(run.rows) for run in members], str),
                spread([run[0] for run in windows], percent),
                spread([max(run) for run in windows], percent),
                spread([run[-1] for run in windows], percent),
                f"{len(reached)} of {len(members)}",
                spread(reached, str) if reached else "",
                f"{collapsed} of {len(members)}",
            ]
        )
    head = ["preset", "rollout/learner", "seeds", "steps", "first window, %", "best, %", "last, %"]
    return table(head + ["reach 95 %", "at step", "collapsed"], rows)


def mismatch_table(runs):
    rows = []
    for cell, members in cells(runs):
        row = label(cell)
        for key in ("mismatch_abs_mean", "mismatch_k3", "mismatch_sequence_kl"):
            for part in (slice(0, WINDOW), slice(-WINDOW, None)):
                means = [run.mean(key, run.rows[part]) for run in members]
                row.append(number(statistics.mean(means)))
        row.append(number(max(max(run.values("mismatch_abs_max")) for run in members)))
        row.append(number(statistics.mean(run.mean("phantom_clip_fraction") for run in members)))
        rows.append(row)
    head = ["preset", "rollout/learner"]
    for name in ("mean abs d", "k3", "KL of responses"):
        head += [f"{name}, first", "last"]
    return table(head + ["largest abs d", "phantom clips"], rows)


def cost_table(runs):
    rows = []
    for cell, members in cells(runs):
        rows.append(
            label(cell)
            + [
                f"{statistics.median(run.median(key) for run in members):.2f}"
                for key in ("time_wait", "time_forward_backward", "time_total")
            ]
        )
    return table(
        ["preset", "rollout/learner", "generation, s", "forward and backward, s", "step, s"], rows
    )


def offline_table(work):
    rows = []
    for precision in ("fp32", "fp16", "bf16"):
        path = work / "offline" / f"{precision}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        by_prompt = {}
        for sample in read_jsonl(work / "offline" / f"{precision}.jsonl"):
            if not sample["greedy"]:
                by_prompt.setdefault(sample["line"], []).append(sample.get("score", 0))
        variance = sum(
            statistics.variance(scores) / len(scores) for scores in by_prompt.values()
        ) / len(by_prompt) ** 2
        rows.append(
            [
                precision,
                f"{100 * result['accuracy']:.2f} ± {196 * math.sqrt(variance):.2f}",
                percent(result["greedy"]),
                f"{result['prompts']} x {result['samples']}",
                f"{result['mean_length']:.1f}",
                f"{result['tokens_per_second']:.0f}",
            ]
        )
    head = ["decoded in", "accuracy, %", "greedy, %", "responses", "mean length"]
    return table(head + ["tokens per second"], rows)


def selection_table(work):
    result = json.loads((work / "selection.json").read_text())
    bins = [f"{10 * i} to {10 * i + 10}" for i in range(len(result["histogram"]))]
    return (
        table(
            ["kept", "below", "above", "sampled", "responses each", "accuracy of all, %"],
            [
                [
                    result["kept"],
                    result["below"],
                    result["above"],
                    result["sampled"],
                    result["samples"],
                    percent(result["mean_accuracy"]),
                ]
            ],
        )
        + "\n\n"
        + table(["accuracy, %"] + bins, [["prompts"] + result["histogram"]])
    )


def interval(figure, form="{:.3g}"):
    return "{0} [{1}, {2}]".format(*(form.format(figure[key]) for key in ("value", "low", "high")))


def bias(figure):
    """As `halfstep gradient-bias` prints it."""
    if figure["batches_apart"] == 0:
        return "none seen"
    if figure["batches_apart"] < 10:
        return f"(in {figure['batches_apart']} batches)"
    return interval(figure) if figure["low"] > 0 else f"< {figure['high']:.2g}"


def gradient_table(work):
    result = json.loads((work / "gradient.json").read_text())
    rows = []
    for cell in result["cells"]:
        for row in cell["corrections"]:
            figures, weights = row["gradient"], row["weights"]
            paired = bias(figures["paired_bias"])
            rows.append(
                [
                    f"{cell['rollout']}/{cell['learner']}",
                    f"`{row['correction']}`",
                    "reference" if row["correction"] == "sequence_is" else paired,
                    bias(figures["bias"]),
                    interval(figures["cosine"], "{:.4g}"),
                    interval(figures["deviation"]),
                    interval(figures["variance_ratio"]),
                    f"{weights['effective_sample_size']:.5g}",
                    f"{100 * weights['masked_share']:.2g}",
                ]
            )
    head = ["rollout/learner", "correction", "bias, paired", "bias", "cosine", "deviation", "variance"]
    return table(head + ["ESS", "masked, %"], rows)


def fill(path, tables):
    """Makes the tables that a page has places for; `tables` are functions by name."""

    def replaced(match):
        name = match[2]
        if name not in tables:
            raise SystemExit(f"{path}: there is no table {name}")
        return f"{match[1]}\n{tables[name]()}\n\n{match[3]}"

    pattern = r"(<!-- table (\S+) -->\n).*?(<!-- end -->)"
    path.write_text(re.sub(pattern, replaced, path.read_text(), flags=re.DOTALL))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("page", type=pathlib.Path)
    arguments = parser.parse_args()
    runs = [Run(path.parent) for path in sorted(arguments.work.glob("runs/*/metrics.jsonl"))]
    usual = [run for run in runs if run.complete() and not run.variant]
    harder = [run for run in runs if len(run.rows) >= WINDOW and run.variant]
    fill(
        arguments.page,
        {
            "selection": lambda: selection_table(arguments.work),
            "offline": lambda: offline_table(arguments.work),
            "gradient": lambda: gradient_table(arguments.work),
            "accuracy": lambda: accuracy_table(usual, WINDOW),
            "mismatch": lambda: mismatch_table(usual),
            "cost": lambda: cost_table(usual),
            "harder-accuracy": lambda: accuracy_table(harder, SHORT_WINDOW),
            "harder-mismatch": lambda: mismatch_table(harder),
        },
    )


if __name__ == "__main__":
    main()
