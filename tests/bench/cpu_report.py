#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the CPU benchmarks of a built preset and prints docs/benchmarks/cpu.md.

    tests/bench/cpu_report.py [build/release/bin] > docs/benchmarks/cpu.md
    tests/bench/cpu_report.py build/release/bin --only profiles      # that section alone

Takes about fifteen minutes; the machine should do nothing else. Every share stands beside the limit that
bursts in the same run reached. The command of each table stands above it.
"""

import argparse
import json
import pathlib
import platform
import re
import resource
import shutil
import statistics
import subprocess
import tempfile

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


JOB = """\
objective: rl
model: {model}
output_dir: {output}
steps: {steps}
profile: {profile}
data: {{train: {train}}}
reward: {reward}
algorithm: {{preset: {preset}}}
sampling: {{max_new_tokens: {tokens}}}
batch: {{prompts: {prompts}, samples: {samples}}}
optimizer: {{learning_rate: 0.00001}}
checkpoint: {{every_steps: 0}}
"""

# A first step that makes random weights from a folder without any.
START = """\
objective: sft
model: start
output_dir: made
steps: 1
data: {train: rows.jsonl}
batch: {prompts: 1}
optimizer: {learning_rate: 0.000001}
"""

M_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8192, "hidden_size": 512,
    "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "initializer_range": 0.02, "eos_token_id": 0,
}  # fmt: skip


def halfstep(directory, root, job, name):
    """Trains the job, and gives the lines of its metrics after the first step."""
    (root / f"{name}.yaml").write_text(job)
    command = [directory / "halfstep", "train", root / f"{name}.yaml", "--root", root]
    command += ["--rollouts", "1", "--format", "json"]
    if "objective: sft" in job:
        command[command.index("1")] = "0"
    subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    output = re.search(r"output_dir: (\S+)", job)[1]
    lines = [json.loads(line) for line in (root / output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("step", 0) > 1 and "time_total" in line]


def make_m(directory, root):
    """A folder of the M model with random weights, and rows whose reward is a coin's: whether the first
    token of a response is an even one."""
    demo = json.loads((ROOT / "deploy/examples/demo/model/tokenizer.json").read_text())
    known = len(demo["model"]["vocab"]) + len(demo["added_tokens"])
    for token in range(known, M_CONFIG["vocab_size"]):
        demo["model"]["vocab"][f"x{token}"] = token
    (root / "start").mkdir()
    (root / "start/tokenizer.json").write_text(json.dumps(demo))
    (root / "start/config.json").write_text(json.dumps(M_CONFIG))
    row = {"prompt": "12+34=", "answer": "x", "response": "46"}
    (root / "rows.jsonl").write_text("".join(json.dumps(row | {"prompt": f"{i}+1="}) + "\n" for i in range(64)))
    halfstep(directory, root, START, "start")


def compare_profiles(directory, root, name, preset, values):
    """One row of the table for each profile."""
    steps = {"fast": [], "bitwise": []}
    cpu = {"fast": 0.0, "bitwise": 0.0}
    for turn in range(values["turns"]):
        for profile in steps:
            output = f"{name}_{preset}_{profile}_{turn}"
            job = JOB.format(preset=preset, profile=profile, output=output, **values)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            steps[profile] += halfstep(directory, root, job, output)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu[profile] += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Step by step: the same step of the same turn takes the same work in both profiles.
    ratios = sorted(
        (b["time_total"] / b["tokens"]) / (f["time_total"] / f["tokens"])
        for f, b in zip(steps["fast"], steps["bitwise"], strict=True)
    )
    low, middle, high = statistics.quantiles(ratios, n=4)
    rows = []
    for profile, lines in steps.items():
        tokens = sum(line["tokens"] for line in lines)

        def per_token(key):
            return f"{1e6 * sum(line[key] for line in lines) / tokens:.0f}"

        fast = profile == "fast"
        rows.append(
            (
                name,
                preset,
                profile,
                per_token("time_total"),
                per_token("time_wait"),
                per_token("time_rescore"),
                per_token("time_forward_backward"),
                f"{statistics.median(line['tokens_rescored'] for line in lines):.0f}",
                f"{cpu[profile]:.0f} s",
                "1" if fast else f"{middle:.3f} ({low:.3f} to {high:.3f})",
                "1" if fast else f"{cpu['bitwise'] / cpu['fast']:.3f}",
            )
        )
    return rows


def profiles(directory):
    """Whole steps of the same job in both profiles, in turn, so that what the machine does meanwhile
    falls on both."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="halfstep_bench_") as folder:
        root = pathlib.Path(folder)
        shutil.copytree(ROOT / "deploy/examples/demo", root / "demo")
        make_m(directory, root)
        demo = {"model": "demo/model", "train": "demo/train.jsonl", "reward": "{type: numeric}",
                "tokens": 48, "prompts": 32, "samples": 8, "steps": 9, "turns": 2}  # fmt: skip
        m = {"model": "made/model", "train": "rows.jsonl", "tokens": 64, "prompts": 8, "samples": 4,
             "reward": "{type: regex, pattern: '^(x)[0-9]*[02468](?=x|$)'}", "steps": 4, "turns": 3}  # fmt: skip
        for name, preset, values in (
            ("demo", "dr_grpo", demo),
            ("demo", "grpo_token_tis", demo),
            ("M", "dr_grpo", m),
            ("M", "grpo_token_tis", m),
        ):
            rows += compare_profiles(directory, root, name, preset, values)
    head = ("model", "preset", "profile", "step", "waiting for samples", "rescoring", "forward and backward",
            "tokens rescored", "CPU time", "step, of fast", "CPU time, of fast")  # fmt: skip
    costs = [
        (row["name"].split("/")[1], f"{1e6 / row['items_per_second']:.3f}")
        for row in run(directory / "mismatch_bench", "BM_Mismatch")
    ]
    return (
        "Whole steps of jobs with one rollout server on this machine, microseconds per trained token, mean of the "
        "steps after the first of 2 (demo) or 3 (M) runs each, in turn; `of fast` is the median of the ratios step by step, with "
        "their quartiles. CPU time is that of all processes over all runs, with start and end. `grpo_token_tis` needs "
        "the log-probs of pi_old: `fast` takes a second forward for them, `bitwise` has them already.\n\n"
        + table(head, rows)
        + "\n\n`mismatch_bench`: all mismatch metrics of a batch, microseconds per token\n\n"
        + table(("tokens of a response", "us per token"), costs)
        + "\n"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bin", nargs="?", default="build/release/bin")
    parser.add_argument("--only", choices=["profiles"])
    options = parser.parse_args()
    directory = ROOT / options.bin
    if options.only:
        print(profiles(directory))
        return
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
## The two profiles
{profiles(directory)}
## The wire
{wire(directory)}"""
    )


if __name__ == "__main__":
    main()
