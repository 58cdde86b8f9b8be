#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/loss_scaler: what the published loss scalers do with given overflows.

Run once by hand; tests read only what it wrote. Versions used: Python 3.11,
  torch 2.15.0            torch.amp.GradScaler, stepping a real optimizer on the CPU
  deepspeed 0.16.2        deepspeed/runtime/fp16/loss_scaler.py: DynamicLossScaler
  megatron-core 0.9.0     megatron/core/optimizer/grad_scaler.py: DynamicGradScaler

  python3 -m venv venv && venv/bin/pip install torch==2.15.0 setuptools wheel
  venv/bin/pip download --no-deps --no-build-isolation deepspeed==0.16.2 megatron-core==0.9.0
  tar xzf deepspeed-0.16.2.tar.gz; unzip megatron_core-0.9.0-*.whl -d megatron
  venv/bin/python tests/golden/make_loss_scaler_golden.py tests/golden/loss_scaler \\
      deepspeed-0.16.2/deepspeed/runtime/fp16/loss_scaler.py megatron/megatron/core/optimizer/grad_scaler.py

The two files are loaded alone: around them stand a rank of 0, a silent logger, and the CPU where they
say "cuda". Each trace is an object with the scaler's options, `outcomes` in runs ("12a1s": twelve applied
steps, then a skipped one), `changes` [[updates so far, scale]] beginning with the initial scale, and
`raised_at`: the update at which the scaler gave up at its minimum, or null.
"""

import importlib.util
import itertools
import json
import pathlib
import random
import sys
import types

import torch

SHARED_DEFAULTS = {"interval": 1000, "growth": 2.0, "backoff": 0.5, "hysteresis": 2, "minimum": 1.0}


def load_alone(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_deepspeed(path):
    logger = types.SimpleNamespace(info=lambda *arguments: None)
    sys.modules["deepspeed"] = types.SimpleNamespace(
        comm=types.SimpleNamespace(get_rank=lambda: 0)
    )
    sys.modules["deepspeed.utils"] = types.SimpleNamespace(logger=logger)
    return load_alone("deepspeed_loss_scaler", path)


def load_megatron(path):
    on_cpu = types.SimpleNamespace(**vars(torch))
    on_cpu.tensor = lambda *values, device=None, **options: torch.tensor(*values, **options)
    sys.modules["torch"] = on_cpu
    try:
        return load_alone("megatron_grad_scaler", path)
    finally:
        sys.modules["torch"] = torch


class TorchScaler:
    """Steps a real optimizer whose gradient is made to overflow."""

    def __init__(self, options):
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([self.parameter], lr=0.0)
        self.scaler = torch.amp.GradScaler(
            "cpu",
            init_scale=options["initial"],
            growth_factor=options["growth"],
            backoff_factor=options["backoff"],
            growth_interval=options["interval"],
        )
        self.scaler.scale(torch.zeros(1))  # makes the scale

    def update(self, found_inf):
        self.parameter.grad = torch.full((1,), float("inf") if found_inf else 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def scale(self):
        return self.scaler.get_scale()


class DeepSpeedScaler:
    def __init__(self, module, options):
        self.scaler = module.DynamicLossScaler(
            init_scale=options["initial"],
            scale_factor=options["growth"],
            scale_window=options["interval"],
            min_scale=options["minimum"],
            delayed_shift=options["hysteresis"],
        )

    def update(self, found_inf):
        self.scaler.update_scale(found_inf)

    def scale(self):
        return self.scaler.loss_scale


class MegatronScaler:
    def __init__(self, module, options):
        self.scaler = module.DynamicGradScaler(
            initial_scale=options["initial"],
            min_scale=options["minimum"],
            growth_factor=options["growth"],
            backoff_factor=options["backoff"],
            growth_interval=options["interval"],
            hysteresis=options["hysteresis"],
        )

    def update(self, found_inf):
        self.scaler.update(found_inf)

    def scale(self):
        return self.scaler.scale.item()


def expand(runs):
    return [kind == "s" for count, kind in runs for _ in range(count)]


def compress(outcomes):
    return "".join(
        f"{len(list(run))}{'s' if found_inf else 'a'}"
        for found_inf, run in itertools.groupby(outcomes)
    )


def scattered(seed, count, share):
    generator = random.Random(seed)
    return [generator.random() < share for _ in range(count)]


def record(make, options, outcomes):
    scaler = make(options)
    changes = [[0, scaler.scale()]]
    raised_at = None
    for updates, found_inf in enumerate(outcomes, start=1):
        try:
            scaler.update(found_inf)
        except Exception:  # what DeepSpeed raises
            raised_at = updates
            outcomes = outcomes[:updates]
            break
        if scaler.scale() != changes[-1][1]:
            changes.append([updates, scaler.scale()])
    return {
        "options": options,
        "outcomes": compress(outcomes),
        "changes": changes,
        "raised_at": raised_at,
    }


def traces(make, defaults):
    """The preset as it is, then small numbers, so that every rule meets every other."""
    interval = defaults["interval"]
    quick = {**defaults, "interval": 7, "initial": 1024.0}
    slow = {**quick, "hysteresis": 3} if defaults["hysteresis"] > 1 else quick
    low = {**quick, "initial": 16.0}
    return [
        record(make, defaults, expand([(interval - 1, "a"), (1, "s"), (2 * interval + 3, "a")])),
        record(make, defaults, expand([(3, "s"), (interval, "a"), (1, "s"), (5, "a"), (4, "s")])),
        record(make, defaults, scattered(1, 3 * interval, 0.001)),
        record(make, quick, scattered(2, 300, 0.05)),
        record(make, quick, scattered(3, 200, 0.2)),
        record(make, slow, scattered(4, 300, 0.1)),
        record(make, {**quick, "growth": 4.0, "backoff": 0.25}, scattered(5, 200, 0.1)),
        record(make, low, expand([(2, "a"), (4, "s"), (1, "a"), (9, "s"), (20, "a"), (3, "s")])),
    ]


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    deepspeed = load_deepspeed(sys.argv[2])
    megatron = load_megatron(sys.argv[3])
    torch_options = {"growth": 2.0, "backoff": 0.5, "hysteresis": 1, "minimum": 0.0}
    scalers = {
        # 400 is what the paper's VeRL patch gives to torch's scaler.
        "default": (TorchScaler, {**torch_options, "initial": 65536.0, "interval": 400}),
        "torch": (TorchScaler, {**torch_options, "initial": 65536.0, "interval": 2000}),
        "deepspeed": (
            lambda options: DeepSpeedScaler(deepspeed, options),
            {**SHARED_DEFAULTS, "initial": 65536.0},
        ),
        "megatron": (
            lambda options: MegatronScaler(megatron, options),
            {**SHARED_DEFAULTS, "initial": 2.0**32},
        ),
    }
    for name, (make, defaults) in scalers.items():
        rows = ",\n".join(json.dumps(trace) for trace in traces(make, defaults))
        (out / f"{name}.json").write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    main()
