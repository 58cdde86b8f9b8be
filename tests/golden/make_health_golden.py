#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints what the health alarms look at in finished runs, from their metrics.jsonl, to four digits.

    tests/golden/make_health_golden.py RUN... > tests/golden/health/demo.csv

The committed file is of `halfstep demo` with seeds 1, 2 and 3, 240 steps each, profile bitwise.
"""
import json
import pathlib
import sys

KEYS = ["zero_std_group_share", "entropy", "mismatch_abs_mean", "grad_norm"]


def main():
    print(",".join(["run", "step"] + KEYS))
    for run, folder in enumerate(sys.argv[1:], 1):
        for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            if "grad_norm" in row:  # not an evaluation
                print(",".join([str(run), str(row["step"])] + [f"{row[key]:.4g}" for key in KEYS]))


if __name__ == "__main__":
    main()
