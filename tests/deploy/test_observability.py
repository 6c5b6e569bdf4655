"""Dashboard, alerts and compose.yaml ask for what a server shows, and find each other."""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import promql_parser
import pytest
import yaml
from siserve.client import Client

from .conftest import ROOT, Render, find_tool, free_ports, the

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "dashboards" / "siserve.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts" / "siserve.rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
}
#: Labels that Prometheus adds to what it scrapes.
TARGET_LABELS = {"instance", "job", "namespace", "pod"}


def filled_in(query: str) -> str:
    """A query as Grafana sends it when every variable stands for all."""
    for name, value in {"$__rate_interval": "1m", "$job": ".*", "$model": ".*"}.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


@dataclass(frozen=True)
class Shown:
    """A server that was asked a few times.

    Attributes:
        labels: names of the labels of each series that it shows.
        page: its metrics as text.
        address: where it serves.
        port: where its metrics are.
    """

    labels: dict[str, set[str]]
    page: str
    address: str
    port: int


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).with_name("siserve")), "serve", "--port=0"]
    command.append(f"--metrics-port={port}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split()[-1]
            ask(address)
            page = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
            series = re.findall(r"^(\w+)(?:\{(.*)\})? ", page, re.MULTILINE)
            labels: dict[str, set[str]] = {}
            for name, pairs in series:
                labels.setdefault(name, set()).update(re.findall(r'(\w+)="', pairs))
            yield Shown(labels, page, address, port)
        finally:
            server.kill()


def ask(address: str) -> None:
    """Ask for some responses."""
    with Client(address) as client:
        client.generate([("A", "do you have any pets")], n=4)


def selectors_of(query: str) -> list[Any]:
    """Every selector of series in a query."""
    found = []

    def look(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(query), look)
    return found


def unknown_in(query: str, labels: dict[str, set[str]]) -> list[str]:
    """What a query names that no series has."""
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    known = labels | {name: {"job", "model", "code"} for name in recorded} | {"up": set()}
    wrong = []
    for selector in selectors_of(query):
        if selector.name not in known:
            wrong.append(selector.name)
            continue
        used = {matcher.name for matcher in selector.matchers.matchers}
        wrong += sorted(used - known[selector.name] - TARGET_LABELS)
    grouped = re.findall(r"\bby \(([^)]*)\)", query)
    names = {name.strip() for part in grouped for name in part.split(",")}
    return wrong + sorted(names - set().union(*known.values()) - TARGET_LABELS)


def test_an_unknown_name_is_seen(shown):
    assert unknown_in("sum by (le, modle) (rate(siserve_queue_second_sum[1m]))", shown.labels) == [
        "siserve_queue_second_sum",
        "modle",
    ]
    assert unknown_in('siserve_requests_total{status="OK"}', shown.labels) == ["status"]


@pytest.mark.parametrize("name", QUERIES)
def test_a_panel_asks_for_what_the_server_shows(name, shown):
    assert unknown_in(filled_in(QUERIES[name]), shown.labels) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_the_server_shows(rule, shown):
    assert unknown_in(rule["expr"], shown.labels) == []


def test_keda_asks_for_what_the_server_shows(render: Render, shown):
    (trigger,) = the(render("keda"), "ScaledObject")["spec"]["triggers"]
    assert unknown_in(trigger["metadata"]["query"], shown.labels) == []


def test_every_metric_of_the_server_is_on_the_dashboard(shown):
    asked = {s.name for query in QUERIES.values() for s in selectors_of(filled_in(query))}
    families = set(re.findall(r"^# TYPE (siserve_\w+)", shown.page, re.MULTILINE))
    missing = {f for f in families if not any(name.startswith(f) for name in asked)}
    assert missing == {"siserve_model_loads_total"}  # an alert tells it


def test_every_alert_says_what_to_do_and_has_a_test():
    tests = yaml.safe_load((DEPLOY / "alerts" / "siserve.test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    alerts = {rule["alert"]: rule for rule in RULES if "alert" in rule}
    assert fired == set(alerts)
    for rule in alerts.values():
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_promtool_finds_the_rules_right_and_their_tests_pass():
    promtool = find_tool("promtool")
    for what in ("check", "test"):
        path = (
            DEPLOY / "alerts" / ("siserve.rules.yaml" if what == "check" else "siserve.test.yaml")
        )
        command = [promtool, what, "rules", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_the_metrics_of_a_live_server_right(shown):
    command = [find_tool("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=shown.page, capture_output=True, text=True)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "siserve_" in line]
    assert complaints == []


def test_every_panel_has_numbers_once_prometheus_scrapes_a_server(shown, tmp_path):
    targets = {"targets": [f"127.0.0.1:{shown.port}"]}
    scrape = {"job_name": "siserve", "scrape_interval": "1s", "static_configs": [targets]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    (port,) = free_ports(1)
    command = [find_tool("prometheus"), f"--config.file={tmp_path}/prometheus.yaml"]
    command += [f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as prometheus:
        try:
            missing = {name: filled_in(query) for name, query in QUERIES.items()}
            deadline = time.monotonic() + 60
            while missing and time.monotonic() < deadline:
                ask(shown.address)
                time.sleep(0.5)
                missing = {n: q for n, q in missing.items() if not has_numbers(port, q)}
            assert missing == {}
            assert drawn(f"http://127.0.0.1:{port}", tmp_path / "board.png") == ""
            assert (tmp_path / "board.png").stat().st_size > 50_000
        finally:
            prometheus.kill()


def drawn(prometheus: str, out: Path) -> str:
    """Draw the last seconds of the dashboard; return what the drawing complains of."""
    command = [sys.executable, str(DEPLOY / "draw_dashboard.py"), f"--prometheus={prometheus}"]
    command += ["--minutes=0.3", "--rate-seconds=10", f"--out={out}"]
    return subprocess.run(command, capture_output=True, text=True).stderr


def has_numbers(port: int, query: str) -> bool:
    """Ask Prometheus; one that is not up yet has none."""
    try:
        url = f"http://127.0.0.1:{port}/api/v1/query?query={quote(query)}"
        with urlopen(url, timeout=5) as reply:
            series = json.load(reply)["data"]["result"]
    except OSError:
        return False
    return bool(series) and all(math.isfinite(float(each["value"][1])) for each in series)


def test_no_panels_overlap_and_all_ask_the_chosen_prometheus():
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    for panel in PANELS:
        assert panel["description"]
        for asker in (panel, *panel["targets"]):
            assert asker["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def test_what_compose_mounts_is_there_and_read_only():
    for service in COMPOSE.values():
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (DEPLOY / source).exists(), volume
                assert rest.endswith(":ro"), volume


def test_compose_opens_ports_on_this_machine_alone_and_hardens_every_container():
    for name, service in COMPOSE.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert ":" in service["image"]


def test_compose_waits_for_the_drain_before_it_kills():
    server = COMPOSE["siserve"]
    (drain,) = [a for a in server["command"] if a.startswith("--drain-seconds=")]
    assert int(server["stop_grace_period"].rstrip("s")) > int(drain.partition("=")[2])


def test_prometheus_of_compose_scrapes_the_port_that_the_image_opens():
    config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
    (scrape,) = config["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    assert found["names"] == ["siserve"]
    assert f"SISERVE_METRICS_PORT={found['port']}" in (DEPLOY / "Dockerfile.serve").read_text()


def test_promtool_finds_the_configuration_of_compose_right(tmp_path):
    for source in (
        DEPLOY / "compose" / "prometheus.yaml",
        DEPLOY / "alerts" / "siserve.rules.yaml",
    ):
        (tmp_path / source.name).write_text(source.read_text())
    command = [find_tool("promtool"), "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
