#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the CPU benchmarks of a built preset and prints docs/benchmarks/cpu.md.

    tests/bench/cpu_report.py [build/release/bin] > docs/benchmarks/cpu.md

Takes about ten minutes; the machine should do nothing else. Every share stands beside the limit that
bursts in the same run reached. The command of each table stands above it.
"""

import json
import pathlib
import platform
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(binary, pattern, extra=()):
    """The benchmarks of one binary whose names match, as Google Benchmark's JSON rows."""
    command = [str(binary), f"--benchmark_filter={pattern}", "--benchmark_format=json", *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["benchmarks"]


def share(value):
    return f"{100 * value:.0f} %"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def arguments(name):
    """linear/forward/fp16/out:1536/... -> {"out": "1536", ...}"""
    return dict(re.findall(r"(\w+):([\w-]+)", name))


def machine():
    model = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    flags = re.search(r"^flags\s*:(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    vectors = "AVX-512" if flags and " avx512f" in flags.group(1) else "AVX2"
    cores = len(re.findall(r"^processor", pathlib.Path("/proc/cpuinfo").read_text(), re.M))
    return f"{cores} cores of {model}, {vectors}, {platform.system()} {platform.machine()}"


def linear(bin_directory):
    sections = []
    for direction, tokens in (
        ("forward", "1|8|64|512"),
        ("backward_input", "64|512"),
        ("backward_weight", "64|512"),
    ):
        pattern = (
            f"linear/{direction}/fp16/out:(1536/in:512|512/in:1536|8192/in:512|128/in:128)"
            f"/tokens:({tokens})/"
        )
        rows = []
        for row in run(bin_directory / "linear_bench", pattern):
            a = arguments(row["name"])
            rows.append(
                (
                    f"{a['out']} x {a['in']}",
                    a["tokens"],
                    a["threads"],
                    f"{row['gflops']:.1f}",
                    share(row["of_fma_peak"]),
                    f"{row['gbytes']:.1f}",
                    share(row["of_bandwidth"]),
                )
            )
        head = ("out x in", "tokens", "threads", "GFLOP/s", "of FMA peak", "weights GB/s", "of bandwidth")
        sections.append(
            f"### {direction.replace('_', ' ')}\n"
            f"`linear_bench --benchmark_filter='{pattern}'`\n\n{table(head, rows)}\n"
        )
    return "\n".join(sections)


def model(bin_directory, pattern):
    rows = []
    for row in run(bin_directory / "model_bench", pattern):
        parts = row["name"].split("/")
        what = " ".join(part for part in parts[:-3] if not part.startswith("threads"))
        rows.append(
            (
                what,
                arguments(row["name"])["threads"],
                f"{row['tokens_per_s']:.0f}",
                f"{row['gflops']:.1f}",
                share(row["of_fma_peak"]),
                f"{row['gbytes']:.1f}",
                share(row["of_bandwidth"]),
            )
        )
    head = ("pass", "threads", "tokens/s", "GFLOP/s", "of FMA peak", "weights GB/s", "of bandwidth")
    return f"`model_bench --benchmark_filter='{pattern}'`\n\n{table(head, rows)}\n"


def wire(bin_directory):
    intake = [
        (
            row["name"].split("/")[1],
            f"{row['items_per_second']:.0f}",
            f"{row['rss_growth_mb']:.1f}",
        )
        for row in run(bin_directory / "intake_bench", "BM_Intake")
    ]
    weights = [
        (
            row["name"].split("/")[0].removeprefix("BM_"),
            row["name"].split("/")[1],
            f"{row['bytes_per_second'] / 1e6:.0f}",
        )
        for row in run(bin_directory / "weight_transfer_bench", "BM_(StreamAlone|StagedAndVerified)")
    ]
    return (
        "`intake_bench`: samples of 200 tokens, over loopback, checked and admitted\n\n"
        + table(("samples per message", "samples/s", "memory growth, MB"), intake)
        + "\n\n`weight_transfer_bench`: weights over loopback; staged and verified is what a rollout does"
        " before it serves\n\n"
        + table(("what", "rollouts at once", "MB/s per rollout"), weights)
        + "\n"
    )


def main():
    directory = ROOT / (sys.argv[1] if len(sys.argv) > 1 else "build/release/bin")
    peaks = run(directory / "linear_bench", "linear/forward/fp16/out:1536/in:512/tokens:512/")
    limits = ", ".join(
        f"{row['fma_peak']:.0f} GFLOP/s and {row['bandwidth']:.0f} GB/s on "
        f"{arguments(row['name'])['threads']} thread(s)"
        for row in peaks
    )
    print(
        f"""# CPU benchmarks

Written by `tests/bench/cpu_report.py` on {machine()}.
Limits seen: {limits} (FP32
multiply-adds in registers; reads of 16 MiB, which is what the linear layers' weights rotate over). A share is of the limit that bursts *in the same run* reached, so shares can be
compared between machines and absolute figures cannot. Weights and activations are FP16; sums are FP32
chains in the order that the `bitwise` contract fixes: these are the kernels of that profile.

## Linear layers
{linear(directory)}
## The M model
Hidden 512, 12 layers, 8 heads, 4 KV heads, FFN 1536, vocabulary 8192: 42 million multiply-adds a token.

{model(directory, "(decode|prefill|train).*/M/threads")}
## The demo's model
{model(directory, "(decode|train).*/demo/threads")}
## The wire
{wire(directory)}"""
    )


if __name__ == "__main__":
    main()
