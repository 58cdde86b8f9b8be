#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks from the include lines who may include whom (docs/architecture.md, "Layers").

    layering_test.py [SOURCE_DIR]

Exits 1 and lists every line that breaks a rule.
"""

import pathlib
import re
import sys

COMMON_ORDER = [
    "base", "metrics", "config", "tokenizer", "model", "checkpoint", "trajectory", "rpc", "reward",
    "collective", "weight_sync",
]  # fmt: skip
ENGINE_LIBRARIES = [
    "rollout_server/generation",
    "learner_server/training",
    "learner_server/algorithm",
    "learner_server/data",
]
TOP = ["kernels", "common", "rollout_server", "learner_server", "cli"]
FORBIDDEN_FOLDERS = {"utils", "util", "misc", "helpers"}
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]')


def allowed(file, include):
    """Whether `file` may include `include`, both relative to the root; None when it is not ours."""
    top = include.split("/")[0]
    folder = str(pathlib.PurePosixPath(file).parent)
    if top == "grpcpp" or include.endswith(".grpc.pb.h"):
        return not (file.startswith("kernels/") or folder in ENGINE_LIBRARIES)
    if top in ("google", "halfstep", "absl", "nlohmann"):
        return not file.startswith("kernels/")
    if top not in TOP and top != "tests":
        return None
    owner = file.split("/")[0]
    if owner == "tests":
        return True
    if top == "tests":
        return False
    if owner == "kernels":
        return top == "kernels"
    if owner == "common":
        if top == "kernels":
            return True
        if top != "common":
            return False
        mine, theirs = file.split("/")[1], include.split("/")[1]
        return COMMON_ORDER.index(theirs) <= COMMON_ORDER.index(mine)
    if top in ("kernels", "common"):
        return True
    if owner == "cli":
        return top == "cli" or any(include.startswith(f"{lib}/") for lib in ENGINE_LIBRARIES)
    if owner in ("rollout_server", "learner_server"):
        if top != owner:
            return False
        if folder in ENGINE_LIBRARIES:
            return any(include.startswith(f"{lib}/") for lib in ENGINE_LIBRARIES) or include.startswith(
                "learner_server/job/"
            )
        return True
    return False


def violations(root):
    for top in TOP + ["tests"]:
        for path in sorted((root / top).rglob("*")):
            relative = path.relative_to(root).as_posix()
            if path.is_dir() and path.name in FORBIDDEN_FOLDERS:
                yield f"{relative}: a folder of this name gathers what belongs elsewhere"
            if path.suffix not in (".h", ".cc", ".cu", ".cuh"):
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                match = INCLUDE.match(line)
                if match and allowed(relative, match[1]) is False:
                    yield f"{relative}:{number}: may not include {match[1]}"


def self_test():
    """The rules must be able to fail."""
    forbidden = [
        ("kernels/cpu/linear.cc", "common/base/file.h"),
        ("kernels/tensor.h", "absl/status/status.h"),
        ("common/base/file.cc", "common/model/transformer.h"),
        ("common/model/transformer.cc", "learner_server/training/trainer.h"),
        ("rollout_server/main.cc", "learner_server/job/job_store.h"),
        ("learner_server/training/trainer.cc", "grpcpp/grpcpp.h"),
        ("cli/main.cc", "learner_server/job_service.h"),
        ("kernels/check.cc", "tests/kernels/op_test.h"),
    ]
    for file, include in forbidden:
        assert allowed(file, include) is False, (file, include)
    assert allowed("common/model/transformer.cc", "kernels/tensor.h") is True
    assert allowed("cli/generate.cc", "rollout_server/generation/engine.h") is True


def main():
    self_test()
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    found = list(violations(root))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
