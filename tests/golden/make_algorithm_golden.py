#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/algorithm: advantages, losses, gradients and weights from published trainers.

Run once by hand; tests read only what it wrote. Versions used: Python 3.11,
  torch 2.15.0     all of it in float64 on the CPU, gradients by its autograd
  verl 0.9.1       verl/trainer/ppo/core_algos.py and rollout_corr_helper.py
  trl 1.16.0       GRPOTrainer._compute_loss, GMPOTrainer._compute_loss, get_soft_overlong_punishment

  python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==4.57.1 numpy==2.4.6 \\
      accelerate==1.11.0 datasets==4.4.1 pandas==2.3.3 omegaconf==2.4.0
  venv/bin/pip install --no-deps verl==0.9.1 trl==1.16.0
  venv/bin/python tests/golden/make_algorithm_golden.py tests/golden/algorithm

verl's two files are loaded without the package around them, which would start Ray: around them stand
empty configuration classes and the CPU as device. TRL's losses are methods: they run on an object that
has the trainer's settings, and log-probs where its model's forward would be.

inputs.json has the responses, whose log-probs are exact in float32. `moderate` has log-ratios of a few
nats; `extreme` also +-50. A function that does not clamp log-ratios, or clamps them elsewhere than at
+-20, as ours do, gets `moderate` alone.

Without a published counterpart in these two, and so in no file here: the current policy in a
correction of policy_gradient (what is weighed by is the caller's choice), the veto, unscorable
responses, exact zeros for equal scores, whitening over responses and not over tokens, the entropy
bonus's gradient by logits (autograd's own), resampling.
"""

import importlib.util
import json
import pathlib
import random
import struct
import sys
import types
from collections import defaultdict

import numpy as np
import torch

LENGTHS = [3, 1, 5, 2, 7, 4]
ADVANTAGES = [0.75, -1.25, -0.5, 2.0, 1.0, -1.5]
NO_DUAL_CLIP = 1e9  # verl has no other way to switch it off


# ---- published code ------------------------------------------------------------------------------


def package(name, **members):
    module = types.ModuleType(name)
    module.__path__ = []
    for key, value in members.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def load_alone(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Config(dict):
    """verl's configurations, by key and by attribute."""

    __getattr__ = dict.__getitem__


def load_verl():
    root = pathlib.Path(importlib.util.find_spec("verl").submodule_search_locations[0])
    nothing = type("Nothing", (), {})
    package("tensordict", TensorDict=nothing)
    package("verl")
    package("verl.protocol", DataProto=nothing)
    package("verl.utils")
    package("verl.utils.device", get_device_name=lambda: "cpu", get_torch_device=lambda: torch.cpu)
    groupwise = load_alone("verl.utils.groupwise", root / "utils/groupwise.py")
    sys.modules["verl.utils"].as_torch_index = groupwise.as_torch_index
    sys.modules["verl.utils"].group_mean_std = groupwise.group_mean_std
    load_alone("verl.utils.import_utils", root / "utils/import_utils.py")
    functional = load_alone("verl.utils.torch_functional", root / "utils/torch_functional.py")
    sys.modules["verl.utils"].torch_functional = functional
    package("verl.trainer")
    package("verl.trainer.config", AlgoConfig=nothing)
    package("verl.trainer.config.algorithm", RolloutCorrectionConfig=nothing)
    package("verl.workers")
    package("verl.workers.config", ActorConfig=Config)
    package("verl.workers.config.actor", PolicyLossConfig=nothing)
    core = load_alone("verl_core_algos", root / "trainer/ppo/core_algos.py")
    correction = load_alone("verl_rollout_corr", root / "trainer/ppo/rollout_corr_helper.py")
    return core, correction


# ---- inputs --------------------------------------------------------------------------------------


def single(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def make_responses(generator, extreme):
    """log pi, log pi_old, log mu and log reference of each token."""
    responses = []
    for length, advantage in zip(LENGTHS, ADVANTAGES):
        response = {"advantage": advantage}
        new = [single(-generator.uniform(0.05, 3.0)) for _ in range(length)]
        response["new"] = new
        for key, spread in (("old", 0.5), ("behaviour", 0.4), ("reference", 0.8)):
            base = response["old"] if key == "behaviour" else new
            response[key] = [single(min(x - generator.gauss(0, spread), -0.01)) for x in base]
        responses.append(response)
    if extreme:  # log pi - log pi_old and log pi_old - log mu of +-50, with either sign of A
        for index, token in ((0, 1), (2, 3), (4, 0), (5, 2)):
            response = responses[index]
            far = single(response["new"][token] - 50)
            if index in (0, 2):
                response["old"][token] = far
            else:
                response["new"][token] = far
        responses[2]["behaviour"][0] = single(responses[2]["old"][0] - 50)
        responses[3]["behaviour"][1] = responses[3]["old"][1]
        responses[3]["old"][1] = single(responses[3]["old"][1] - 50)
        responses[3]["new"][1] = responses[3]["old"][1]
    return responses


class Batch:
    def __init__(self, responses):
        width = max(LENGTHS)
        self.mask = torch.zeros(len(responses), width, dtype=torch.float64)
        for row, response in enumerate(responses):
            self.mask[row, : len(response["new"])] = 1
        for key in ("new", "old", "behaviour", "reference"):
            # What stands in the padding must not matter.
            values = torch.full_like(self.mask, -0.5)
            for row, response in enumerate(responses):
                values[row, : len(response[key])] = torch.tensor(response[key], dtype=torch.float64)
            setattr(self, key, values)
        self.advantages = torch.tensor([r["advantage"] for r in responses], dtype=torch.float64)

    def ragged(self, values):
        return [row[: int(mask.sum())].tolist() for row, mask in zip(values, self.mask)]


# ---- losses --------------------------------------------------------------------------------------


def with_gradient(batch, loss_of):
    new = batch.new.clone().requires_grad_(True)
    loss = loss_of(new)
    (gradient,) = torch.autograd.grad(loss, new)
    return {"loss": loss.item(), "gradient": batch.ragged(gradient)}


def verl_config(**options):
    config = {
        "clip_ratio": 0.2,
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.2,
        "clip_ratio_c": NO_DUAL_CLIP,
        "global_batch_info": {},
    }
    return Config({**config, **options})


def verl_losses(core, correction, batches):
    clip = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
    norm = {"global_batch_info": {"loss_scale_factor": 16}}
    aggregations = {
        "token_mean": ("token-mean", {}),
        "sequence_mean_token_mean": ("seq-mean-token-mean", {}),
        "sequence_mean_token_sum": ("seq-mean-token-sum", {}),
        "sequence_mean_token_sum_norm": ("seq-mean-token-sum-norm", norm),
    }
    rows = []

    def add(name, objective, inputs, aggregation, options, weights=None, **ours):
        mode, extra = aggregations[aggregation]
        config = verl_config(**options, **extra)
        batch = batches[inputs]
        factors = None
        if weights:
            log_ratio = batch.old - batch.behaviour
            factors, _ = correction.compute_rollout_correction_weights(
                log_ratio, batch.mask, rollout_is=weights[0], rollout_is_threshold=weights[1]
            )
        advantages = batch.advantages.unsqueeze(-1).expand_as(batch.mask)

        def loss_of(new):
            if name == "reinforce":
                return core.compute_policy_loss_reinforce(
                    batch.behaviour, new, advantages, batch.mask, mode, config, factors
                )[0]
            return core.get_policy_loss_fn(name)(
                batch.old, new, advantages, batch.mask, mode, config, factors
            )[0]

        case = {"function": f"verl {name}", "objective": objective, "inputs": inputs}
        rows.append({**case, "aggregation": aggregation, **ours, **with_gradient(batch, loss_of)})

    for aggregation in aggregations:
        add("vanilla", "ppo_clip", "moderate", aggregation, clip, clip=[0.2, 0.28])
        add("reinforce", "policy_gradient", "moderate", aggregation, {})
    for inputs in batches:
        add("vanilla", "ppo_clip", inputs, "token_mean", clip, clip=[0.2, 0.28])
        for dual in (3.0, 10.0):
            options = {**clip, "clip_ratio_c": dual}
            add("vanilla", "ppo_clip", inputs, "token_mean", options, clip=[0.2, 0.28], dual=dual)
        for level, bound, kind in (
            ("token", 2.0, "token_tis"),
            ("token", "0.5_5.0", "icepop"),
            ("sequence", 3.0, "sequence_tis"),
        ):
            ours = {"clip": [0.2, 0.28], "correction": kind}
            add("vanilla", "ppo_clip", inputs, "token_mean", clip, (level, bound), **ours)
        wide = {"clip_ratio_low": 1.0, "clip_ratio_high": 4.0}
        add("cispo", "cispo", inputs, "token_mean", wide, clip=[1.0, 4.0])
        add("cispo", "cispo", inputs, "token_mean", clip, clip=[0.2, 0.28])
        taus = {"tau_pos": 1.0, "tau_neg": 1.05}
        add("sapo", "sapo", inputs, "sequence_mean_token_mean", taus)
        for delta in (0.15, 0.05):
            bounds = {"clip_ratio_low": delta, "clip_ratio_high": delta, "clip_ratio_c": 20.0}
            add("dppo_tv", "dppo_tv", inputs, "token_mean", bounds, delta=delta)
    # Clamped at e^10 there, below only by the type's range, so moderate alone, as are the others.
    for low, high in ((3e-4, 4e-4), (0.1, 0.2)):
        bounds = {"clip_ratio_low": low, "clip_ratio_high": high}
        add("gspo", "gspo", "moderate", "sequence_mean_token_mean", bounds, clip=[low, high])
    sequence = {"clip": [0.1, 0.2], "correction": "sequence_tis"}
    bounds = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.2}
    mean = "sequence_mean_token_mean"
    add("gspo", "gspo", "moderate", mean, bounds, ("sequence", 3.0), **sequence)
    bounds = {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}
    add("geo_mean", "gmpo", "moderate", mean, bounds, clip=[0.4, 0.4])
    dro = {"policy_loss": Config(dro_beta=0.3)}
    add("dro", "dro", "moderate", "token_mean", dro, beta=0.3)
    return rows


class TrlTrainer:
    """What GRPOTrainer._compute_loss reads of its trainer."""

    def __init__(self, log_probs, settings):
        self.args = types.SimpleNamespace(
            delta=None,
            use_bias_correction_kl=False,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
        )
        self.model = types.SimpleNamespace(training=False)
        self.accelerator = types.SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        )
        self._metrics = {"eval": defaultdict(list)}
        self.log_probs = log_probs
        self.aux_loss_enabled = False
        self._entropy_bonus_enabled = False
        self.top_entropy_quantile = 1.0
        self.off_policy_mask_threshold = None
        self.use_vllm = self.vllm_importance_sampling_correction = False
        self.importance_sampling_level = "token"
        self.beta = 0.0
        self.epsilon_low = self.epsilon_high = 0.2
        self.max_completion_length = 16
        for key, value in settings.items():
            setattr(self, key, value)

    def _get_per_token_logps_and_entropies(self, *arguments, **options):
        return self.log_probs, torch.zeros_like(self.log_probs.detach()), None


def trl_losses(batch):
    from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer

    empty = torch.zeros(len(LENGTHS), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": torch.zeros(batch.mask.shape, dtype=torch.long),
        "completion_mask": batch.mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "num_items_in_batch": batch.mask.sum(),
    }
    rows = []

    def add(trainer, objective, aggregation, settings, weights=None, **ours):
        def loss_of(new):
            fields = dict(inputs)
            options = dict(settings)
            if weights:
                options.update(use_vllm=True, vllm_importance_sampling_correction=True)
                fields["importance_sampling_ratio"] = weights[1]
            return trainer._compute_loss(TrlTrainer(new, options), None, fields)

        case = {
            "function": f"trl {trainer.__name__} {settings['loss_type']}",
            "objective": objective,
            "inputs": "moderate",
            "aggregation": aggregation,
        }
        if weights:
            case["correction"] = weights[0]
        rows.append({**case, **ours, **with_gradient(batch, loss_of)})

    clip = {"epsilon_low": 0.2, "epsilon_high": 0.28}
    ours = {"clip": [0.2, 0.28]}
    # TRL makes its weights inside the method that also generates; how they enter the loss is its own.
    truncated = ("token_tis", torch.exp(batch.old - batch.behaviour).clamp(max=2.0))
    for loss_type, aggregation in (
        ("grpo", "sequence_mean_token_mean"),
        ("dapo", "token_mean"),
        ("dr_grpo", "sequence_mean_token_sum_norm"),
    ):
        settings = {"loss_type": loss_type, **clip}
        add(GRPOTrainer, "ppo_clip", aggregation, settings, **ours)
        add(GRPOTrainer, "ppo_clip", aggregation, settings, truncated, **ours)
        kl = {"kl": ["k3", 0.05]}
        add(GRPOTrainer, "ppo_clip", aggregation, {**settings, "beta": 0.05}, **ours, **kl)
    mean = "sequence_mean_token_mean"
    for low, high in ((3e-4, 4e-4), (0.1, 0.2)):
        settings = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
        settings.update(epsilon_low=low, epsilon_high=high)
        add(GRPOTrainer, "gspo", mean, settings, clip=[low, high])
    # The upper bound itself there, 1 + high here; there is no lower one.
    settings = {"loss_type": "cispo", "epsilon_high": 5.0}
    add(GRPOTrainer, "cispo", "token_mean", settings, clip=[1.0, 4.0])
    add(GRPOTrainer, "sapo", mean, {"loss_type": "sapo"})
    settings = {"loss_type": "grpo", "epsilon_low": 0.4, "epsilon_high": 0.4}
    add(GMPOTrainer, "gmpo", mean, settings, clip=[0.4, 0.4])
    return rows


# ---- advantages, corrections, KL, lengths --------------------------------------------------------

GROUPS = [[1.0, 0.0, 0.0, 1.0], [0.25, 0.5, 2.0], [-1.0, 1.5], [0.0, 0.0, 1.0, 0.0, 0.5]]
GREEDY = [1.0, 0.5, -0.25, 0.0]


def advantages(core):
    scores = torch.tensor([s for group in GROUPS for s in group], dtype=torch.float64)
    index = np.array([i for i, group in enumerate(GROUPS) for _ in group])
    # Responses of one token each: verl whitens over tokens.
    rewards = scores.unsqueeze(-1)
    mask = torch.ones_like(rewards)
    greedy = torch.tensor([GREEDY[i] for i in index], dtype=torch.float64)
    published = {
        "group_mean": core.compute_grpo_outcome_advantage(
            rewards.clone(), mask, index, norm_adv_by_std_in_grpo=False
        ),
        "group_mean_std": core.compute_grpo_outcome_advantage(rewards.clone(), mask, index),
        "leave_one_out": core.compute_rloo_outcome_advantage(rewards.clone(), mask, index),
        "batch_whiten": core.compute_reinforce_plus_plus_outcome_advantage(
            rewards.clone(), mask, config=types.SimpleNamespace(gamma=1.0)
        ),
        "group_mean_batch_whiten": core.compute_reinforce_plus_plus_baseline_outcome_advantage(
            rewards.clone(), mask, index
        ),
        "greedy_baseline": core.compute_remax_outcome_advantage(rewards.clone(), greedy, mask),
    }
    return {
        "groups": GROUPS,
        "greedy": GREEDY,
        "advantages": {kind: value[0].squeeze(-1).tolist() for kind, value in published.items()},
    }


def corrections(correction, batches):
    rows = []
    for inputs, batch in batches.items():
        log_ratio = batch.old - batch.behaviour
        for kind, level, threshold in (
            ("token_is", "token", 1e30),
            ("token_tis", "token", 2.0),
            ("icepop", "token", "0.5_5.0"),
            ("sequence_is", "sequence", 1e30),
            ("sequence_tis", "sequence", 3.0),
            ("sequence_mis", "sequence", "1e-30_3.0"),  # a lower bound that is none
        ):
            for normalize in (False, True):
                weights, metrics = correction.compute_rollout_correction_weights(
                    log_ratio,
                    batch.mask,
                    rollout_is=level,
                    rollout_is_threshold=threshold,
                    rollout_is_batch_normalize=normalize,
                )
                row = {"kind": kind, "inputs": inputs, "normalize": normalize}
                row["weights"] = batch.ragged(weights)
                row["mean"] = metrics["rollout_is_mean"]
                row["effective_sample_size"] = metrics["rollout_is_eff_sample_size"]
                rows.append(row)
        # verl bounds e^(-mean d), ours are those of e^(mean d).
        for kind, option, threshold, ours in (
            ("geometric_mask", "seq_mean_k1", f"{1 / 1.1}_{1 / 0.8}", {"low": 0.8, "high": 1.1}),
            ("k3_mask", "seq_mean_k3", 0.05, {"k3_limit": 0.05}),
        ):
            mask, metrics = correction.compute_rollout_rejection_mask(
                log_ratio, batch.mask, rollout_rs=option, rollout_rs_threshold=threshold
            )
            row = {"kind": kind, "inputs": inputs, "normalize": False, **ours}
            row["weights"] = batch.ragged(mask)
            row["masked_share"] = metrics["rollout_rs_masked_fraction"]
            rows.append(row)
    return rows


def kl_estimates(core, batch):
    rows = []
    for name in ("k1", "k2", "k3"):
        new = batch.new.clone().requires_grad_(True)
        value = core.kl_penalty(new, batch.reference, name)
        (gradient,) = torch.autograd.grad(value.sum(), new)
        row = {"estimator": name, "values": batch.ragged(value), "gradient": batch.ragged(gradient)}
        rows.append(row)
    return rows


def overlong():
    from trl.rewards import get_soft_overlong_punishment

    lengths = [0, 1, 79, 80, 81, 90, 99, 100, 101, 1000]
    punish = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    penalties = punish([[1] * length for length in lengths])
    return {"max_length": 100, "cache": 20, "lengths": lengths, "penalties": penalties}


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    core, correction = load_verl()
    responses = {
        "moderate": make_responses(random.Random(1), extreme=False),
        "extreme": make_responses(random.Random(2), extreme=True),
    }
    batches = {name: Batch(rows) for name, rows in responses.items()}

    def write_rows(name, rows):
        lines = ",\n".join(json.dumps(row) for row in rows)
        (out / f"{name}.json").write_text(f"[\n{lines}\n]\n")

    (out / "inputs.json").write_text(
        "{\n"
        + ",\n".join(
            f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
            for name, rows in responses.items()
        )
        + "\n}\n"
    )
    write_rows(
        "losses", verl_losses(core, correction, batches) + trl_losses(batches["moderate"])
    )
    write_rows("corrections", corrections(correction, batches))
    write_rows("kl", kl_estimates(core, batches["moderate"]))
    (out / "advantages.json").write_text(json.dumps(advantages(core)) + "\n")
    (out / "overlong.json").write_text(json.dumps(overlong()) + "\n")


if __name__ == "__main__":
    main()
