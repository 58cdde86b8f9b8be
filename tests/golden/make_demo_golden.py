#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/demo/base.json: the demo's base model as transformers loads, scores and runs it.

    make_demo_golden.py [FINAL_MODEL...] [--score-tokens PROGRAM]

Run by hand whenever deploy/examples/demo/model changes; tests read only what it wrote. It then compares
transformers with this project's own scoring (score_tokens of the release preset), live, for the base model and
for every FINAL_MODEL, the run/model folder of a finished demo, and exits 1 where they differ by more than
TOLERANCE. Versions used:
  torch 2.15.0, transformers 4.57.1, safetensors 0.8.0, numpy 2.4.6, Python 3.11 (CPU, FP32, eager attention)

  python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==4.57.1 safetensors==0.8.0 numpy==2.4.6
  cmake --preset release && cmake --build --preset release --target score_tokens halfstep
  build/release/bin/halfstep demo --output-dir /tmp/demo
  venv/bin/python tests/golden/make_demo_golden.py /tmp/demo/run/model

base.json holds
  weights_sha256   of the model.safetensors that was scored
  cases            for PROMPTS held-out prompts: text, ids, and responses by what made them:
    worked           the correct worked response, ended
    greedy           what generate gives; the prompts are those on whose way no two tokens are nearly equal
    sampled          a sample at temperature 1
  each with its text, its tokens and the FP32 log-prob of every token
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy/examples/demo"
sys.path.insert(0, str(DEMO))
from make_demo_data import worked_response

PROMPTS = 16
MAX_NEW_TOKENS = 48  # as deploy/examples/demo.yaml
TOLERANCE = 1e-4  # kOracleLogProb of tests/kernels/tolerance.h, where its reason is
# Between the two best logits on a greedy way: far more than two FP32 programs differ by.
GREEDY_MARGIN = 100 * TOLERANCE


class Oracle:
    """A model folder in transformers."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def logits(self, prompt, response):
        """Those that predict each token of the response."""
        tokens = torch.tensor([prompt + response])
        return self.model(tokens).logits[0, len(prompt) - 1 : -1].float()

    def log_probs(self, prompt, response):
        chosen = torch.log_softmax(self.logits(prompt, response), -1)
        return chosen.gather(1, torch.tensor(response)[:, None])[:, 0].tolist()

    def generate(self, prompt, **how):
        tokens = torch.tensor([prompt])
        end = self.tokenizer.eos_token_id
        # Settings come one by one: a whole GenerationConfig loses to the model's where it holds a default.
        out = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=end,
            pad_token_id=end,
            **how,
        )
        return out[0, len(prompt) :].tolist()

    def greedy_margin(self, prompt, response):
        best = self.logits(prompt, response).topk(2).values
        return (best[:, 0] - best[:, 1]).min().item()

    def response(self, prompt, tokens):
        # Nine digits tell every FP32 value from its neighbours.
        log_probs = [float(f"{value:.9g}") for value in self.log_probs(prompt, tokens)]
        return {"text": self.tokenizer.decode(tokens), "tokens": tokens, "log_probs": log_probs}

    def cases(self):
        torch.manual_seed(1)
        cases = []
        for line in (DEMO / "eval.jsonl").read_text().splitlines():
            text = json.loads(line)["prompt"]
            prompt = self.tokenizer(text).input_ids
            greedy = self.generate(prompt, do_sample=False)
            if self.greedy_margin(prompt, greedy) < GREEDY_MARGIN:
                continue
            a, b = map(int, text.rstrip("=").split("+"))
            worked = self.tokenizer(worked_response(a, b, guessed=())).input_ids
            sampled = self.generate(prompt, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
            responses = {
                "worked": worked + [self.tokenizer.eos_token_id],
                "greedy": greedy,
                "sampled": sampled,
            }
            case = {"prompt": text, "prompt_tokens": prompt}
            for name, tokens in responses.items():
                case[name] = self.response(prompt, tokens)
            cases.append(case)
            if len(cases) == PROMPTS:
                return cases
        sys.exit(f"{self.folder}: only {len(cases)} prompts of eval.jsonl have no near tie in greedy")


def responses_of(cases):
    for case in cases:
        for name in ("worked", "greedy", "sampled"):
            yield case["prompt_tokens"], case[name]


def compare(folder, cases, score_tokens):
    """Whether score_tokens gives the log-probs of `cases`, and prints by how much it does not."""
    rows = "".join(
        json.dumps({"prompt": prompt, "response": response["tokens"]}) + "\n"
        for prompt, response in responses_of(cases)
    )
    run = subprocess.run(
        [score_tokens, folder], input=rows, stdout=subprocess.PIPE, text=True, check=True
    )
    ours = [json.loads(line)["log_probs"] for line in run.stdout.splitlines()]
    theirs = [response["log_probs"] for _, response in responses_of(cases)]
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        sys.exit(f"{score_tokens}: not one log-prob for each token of each response")
    differences = [abs(a - b) for x, y in zip(ours, theirs) for a, b in zip(x, y)]
    # A NaN compares false with everything and must not pass.
    within = all(difference <= TOLERANCE for difference in differences)
    worst = max(differences, key=lambda value: math.inf if math.isnan(value) else value)
    print(
        f"{folder}: {len(differences)} log-probs of {len(ours)} responses, "
        f"lowest {min(map(min, theirs)):.3f}, max |difference| {worst:.3g} "
        f"({'within' if within else 'ABOVE'} {TOLERANCE:g})"
    )
    return within


def write(path, folder, cases):
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"weights_sha256": "{digest}",\n"cases": [\n{lines}\n]}}\n')


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("final_model", nargs="*", type=pathlib.Path)
    parser.add_argument(
        "--score-tokens", type=pathlib.Path, default=ROOT / "build/release/bin/score_tokens"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is small, and the sums do not depend on the cores

    base = DEMO / "model"
    cases = Oracle(base).cases()
    write(ROOT / "tests/golden/demo/base.json", base, cases)
    if not arguments.score_tokens.exists():
        sys.exit(f"{arguments.score_tokens}: not there; build the target score_tokens")
    within = compare(base, cases, arguments.score_tokens)
    for folder in arguments.final_model:
        within &= compare(folder, Oracle(folder).cases(), arguments.score_tokens)
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
