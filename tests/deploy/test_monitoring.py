"""deploy/monitoring: Prometheus' own tool reads and tests the rules, and they use existing metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

_NAME = re.compile(r"\blayerfarm[_:][a-z0-9_:]+")

# In a process of its own: the metrics of a worker can be made once per process.
_LIST = """
import sys
from collections import Counter
from layerfarm.worker.monitoring.census import Census
from layerfarm.worker.monitoring.metrics import Metrics, _Farm
from layerfarm.worker.catalog.serve.metrics import ServeMetrics
from prometheus_client import REGISTRY
Metrics()
census = Census(jobs=Counter({("build", "queued", "bulk"): 1}), queues={"q": 1}, oldest={"bulk": 1.0}, redis_bytes=1)
served = ServeMetrics()._registry
for family in [*REGISTRY.collect(), *_Farm(lambda: census).collect(), *served.collect()]:
    suffixes = {"counter": ["_total"], "histogram": ["_count", "_sum", "_bucket"]}.get(family.type, [""])
    for suffix in suffixes:
        print(family.name + suffix)
"""


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """The names of all samples that a worker, or a server of catalogs, serves."""
    done = subprocess.run([sys.executable, "-c", _LIST], capture_output=True, text=True, check=True)
    return {line for line in done.stdout.split() if line.startswith("layerfarm")}


def test_prometheus_reads_the_configuration_and_the_rules_pass_their_tests(
    deploy: Path, program: Callable[[str], str]
) -> None:
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "rules.test.yml"]):
        done = subprocess.run(
            [program("promtool"), *command], cwd=deploy / "monitoring", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_name_existing_metrics(deploy: Path, metrics: set[str]) -> None:
    rules = (deploy / "monitoring/rules.yml").read_text()
    groups = YAML(typ="safe").load(rules)["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    used = {name for group in groups for rule in group["rules"] for name in _NAME.findall(rule["expr"])}
    assert used - recorded <= metrics
    for group in groups:
        for rule in group["rules"]:
            if "alert" in rule:
                assert set(rule["annotations"]) == {"summary", "action"}


def test_panels_of_the_dashboard_are_valid_queries_of_metrics_that_there_are(
    deploy: Path, metrics: set[str], tmp_path: Path, program: Callable[[str], str]
) -> None:
    dashboard = json.loads((deploy / "monitoring/grafana-dashboard.json").read_text())
    recorded = {
        rule["record"]
        for group in YAML(typ="safe").load(deploy / "monitoring/rules.yml")["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {name for query in queries for name in _NAME.findall(query)} <= metrics | recorded
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    subprocess.run([program("promtool"), "check", "rules", tmp_path / "rules.yml"], check=True, capture_output=True)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken
        taken |= cells
