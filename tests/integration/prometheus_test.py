#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Debian's Prometheus scrapes a short run; every expression of the dashboard and the alerts is evaluated.
Those of the dashboard, and every selector inside an alert, must give a result; and a panel that
draws a curve for each value of a label draws all values that docs/metrics.md lists.

    prometheus_test.py SOURCE_DIR BINARY_DIR
"""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

DEADLINE_SECONDS = 120
# A metric, as far as it is one of ours or `up`, with its label matchers.
SELECTOR = re.compile(r"\b(?:halfstep_[a-z0-9_]+|up)\b(?:\{[^}]*\})?")


def wait_for(what, probe):
    """Polls `probe` until it gives something true; fails by name when the deadline passes."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            value = probe()
        except (OSError, ValueError, KeyError):
            value = None
        if value:
            return value
        time.sleep(0.1)
    sys.exit(f"no {what} within {DEADLINE_SECONDS} seconds")


class Processes:
    """Child processes, all ended on the way out."""

    def __init__(self, directory):
        self.directory = directory
        self.running = []

    def start(self, name, *arguments):
        log = open(self.directory / f"{name}.log", "w", encoding="utf-8")
        process = subprocess.Popen([str(a) for a in arguments], stdout=log, stderr=log)
        self.running.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def dashboard_expressions(path):
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel["targets"]:
            yield f"panel '{panel['title']}'", target["expr"], target["legendFormat"]


def label_values(path):
    """By metric and label: the values that its row of docs/metrics.md lists."""
    values = {}
    for line in path.read_text().splitlines():
        if match := re.match(r"\| `(\w+)` \| \w+ \| `(\w+)`: ([^|]+) \|", line):
            values[match[1], match[2]] = set(match[3].split(", "))
    return values


def alert_expressions(path):
    """The `expr` of each rule; the file is our own, with `expr: x` or a block scalar below it."""
    lines = path.read_text().splitlines()
    name = ""
    for index, line in enumerate(lines):
        if match := re.match(r"\s*- alert: (\w+)", line):
            name = match[1]
        if match := re.match(r"(\s*)expr: (.*)", line):
            text = match[2]
            if text == "|":
                block = []
                for following in lines[index + 1 :]:
                    if len(following) - len(following.lstrip()) <= len(match[1]):
                        break
                    block.append(following.strip())
                text = " ".join(block)
            yield f"alert {name}", text


def main():
    source, binary = (pathlib.Path(a).resolve() for a in sys.argv[1:3])
    bin_dir = binary / "bin"
    with tempfile.TemporaryDirectory() as scratch, Processes(pathlib.Path(scratch)) as processes:
        run(source, bin_dir, pathlib.Path(scratch), processes)


def run(source, bin_dir, scratch, processes):
    root = scratch / "root"
    shutil.copytree(source / "deploy/examples/demo", root / "demo")

    def ports(name):
        file = scratch / f"{name}.ports"
        return wait_for(f"port file of {name}", lambda: file.exists() and json.loads(file.read_text()))

    processes.start(
        "learner", bin_dir / "halfstep-learner", "--root", root, "--listen", "127.0.0.1:0",
        "--http", "127.0.0.1:0", "--port-file", scratch / "learner.ports",
    )  # fmt: skip
    learner = ports("learner")
    processes.start(
        "rollout", bin_dir / "halfstep-rollout", "--learner", learner["grpc"], "--id", "rollout-0",
        "--http", "127.0.0.1:0", "--port-file", scratch / "rollout.ports",
    )  # fmt: skip
    rollout = ports("rollout")

    job = (source / "deploy/examples/demo.yaml").read_text()
    job = re.sub(r"(?m)^steps: .*", "steps: 2", job)
    job = re.sub(r"(?m)^  warmup_steps: .*", "  warmup_steps: 0", job)
    job = re.sub(r"(?m)^  prompts: .*", "  prompts: 4", job)
    (scratch / "job.yaml").write_text(job)
    submitted = subprocess.run(
        [bin_dir / "halfstep", "submit", scratch / "job.yaml", "--learner", learner["grpc"],
         "--format", "json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    name = json.loads(submitted.stdout)["name"]
    subprocess.run(
        [bin_dir / "halfstep", "watch", name, "--learner", learner["grpc"]],
        check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE_SECONDS,
    )  # fmt: skip

    config = (source / "deploy/prometheus/prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9401", learner["http"])
    config = config.replace('"127.0.0.1:9411", "127.0.0.1:9412"', f'"{rollout["http"]}"')
    config = config.replace("interval: 5s", "interval: 1s")
    (scratch / "prometheus.yml").write_text(config)
    (scratch / "alerts.yml").write_text((source / "deploy/prometheus/alerts.yml").read_text())
    listen = scratch / "prometheus.log"
    processes.start(
        "prometheus", "prometheus", f"--config.file={scratch}/prometheus.yml",
        f"--storage.tsdb.path={scratch}/tsdb", "--web.listen-address=127.0.0.1:0",
    )  # fmt: skip
    address = wait_for(
        "address of Prometheus",
        lambda: re.search(r"Listening on\"? address=([0-9.:]+)", listen.read_text()),
    )[1]

    def ask(path, **query):
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)["data"]

    wait_for(
        "scrape of every target",
        lambda: len(ask("query", query="up == 1")["result"]) == 2,
    )

    def result(expression):
        try:
            return ask("query", query=expression)["result"], ""
        except urllib.error.HTTPError as error:
            return [], f": {error.read().decode()}"

    # A rate needs two scrapes; whatever has no result after some more will never have one.
    wait_for(
        "third scrape of every target",
        lambda: len(ask("query", query="count_over_time(up[1h]) > 2")["result"]) == 2,
    )
    dashboard = list(dashboard_expressions(source / "deploy/grafana/dashboards/halfstep.json"))
    alerts = list(alert_expressions(source / "deploy/prometheus/alerts.yml"))
    # An alert has no result on a healthy system, but what it looks at is there.
    looked_at = [(where, s) for where, alert in alerts for s in SELECTOR.findall(alert)]
    listed = label_values(source / "docs/metrics.md")
    failures = labels = 0
    for where, expression, legend in [*dashboard, *((w, e, "") for w, e in looked_at)]:
        found, error = result(expression)
        if not found:
            print(f"{where}: {expression} has no result{error}")
            failures += 1
        for label in re.findall(r"{{(\w+)}}", legend):
            metric = re.sub("_(sum|count|bucket)$", "", re.search(r"halfstep_\w+", expression)[0])
            wanted = listed.get((metric, label), set())
            labels += bool(wanted)
            if missing := wanted - {one["metric"].get(label) for one in found}:
                print(f"{where}: {expression} lacks {label} {', '.join(sorted(missing))}")
                failures += 1
    if labels == 0:
        sys.exit("no panel has a label of docs/metrics.md in its legend")
    for where, expression in alerts:
        found, error = result(expression)
        if found or error:
            print(f"{where}: {expression} fires on a healthy system: {found}{error}")
            failures += 1
    for port in (learner["http"], rollout["http"]):
        with urllib.request.urlopen(f"http://{port}/metrics", timeout=5) as answer:
            text = answer.read()
        check = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        if check.returncode:
            print(f"promtool check metrics of {port}: {check.stderr.decode()}{check.stdout.decode()}")
            failures += 1
    print(f"{len(dashboard)} panels, {len(alerts)} alerts, {len(looked_at)} selectors, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
