"""The chart: what helm and Kubernetes refuse, and what they would let pass."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from siserve import __version__
from siserve.serving.metrics import Metrics

from .conftest import (
    CHART,
    NEWEST,
    ROOT,
    SCENARIOS,
    find_tool,
    of_kind,
    options,
    pod_of,
    server_of,
    the,
)

VERSIONS = ("1.29", "1.32", NEWEST)


def scenarios_for(version: str) -> list[str]:
    """All scenarios that a cluster of this version can have."""
    return [name for name in SCENARIOS if name != "model-oci" or version != "1.29"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_strict_lint_finds_nothing(scenario, helm):
    done = helm("lint", "--strict", CHART, "--values", CHART / "ci" / f"{scenario}-values.yaml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_every_scenario_is_valid_for(version, render, tmp_path):
    seen: set[str] = set()  # most manifests of a scenario are those of another
    for scenario in scenarios_for(version):
        texts = {yaml.safe_dump(manifest) for manifest in render(scenario, version=version)}
        (tmp_path / f"{scenario}.yaml").write_text("---\n".join(sorted(texts - seen)))
        seen |= texts
    done = subprocess.run(
        [find_tool("kubernetes-validate"), "-k", version, "--strict", "--quiet"]
        + sorted(map(str, tmp_path.glob("*.yaml"))),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = set(re.findall(r"schema for kind (\w+)", done.stdout + done.stderr))
    assert unknown == {
        "GRPCRoute",
        "PodMonitor",
        "PrometheusRule",
        "ScaledObject",
        "ServiceMonitor",
    }


def test_a_misspelt_probe_is_not_valid(render, tmp_path):
    manifests = json.loads(json.dumps(render("default")))
    container = server_of(manifests)
    container["livenesProbe"] = container.pop("livenessProbe")
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump_all(manifests))
    command = [find_tool("kubernetes-validate"), "-k", NEWEST, "--strict"]
    command.append(str(tmp_path / "wrong.yaml"))
    assert subprocess.run(command, capture_output=True).returncode != 0


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("replicaCout=3", "replicaCout"),
        ("image.tagg=1", "tagg"),
        ("server.optionz.max-rows=3", "optionz"),
        ("model.download.sha=1", "sha"),
        ("autoscaling.enable=true", "enable"),
        ("replicaCount=many", "replicaCount"),
        ("model.source=cloud", "model/source"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(value, named, helm):
    done = helm("template", "replies", CHART, "--set", value)
    assert done.returncode != 0
    assert named in done.stderr


def test_no_object_of_the_schema_takes_a_key_that_it_does_not_name():
    def open_objects(schema, path):
        if schema.get("properties") and schema.get("additionalProperties") is not False:
            yield path
        for name, inside in schema.get("properties", {}).items():
            yield from open_objects(inside, f"{path}.{name}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(open_objects(schema, "")) == []


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (["autoscaling.enabled=true", "keda.enabled=true"], "both scale"),
        (["autoscaling.enabled=true", "resources.requests.cpu=null"], "resources.requests.cpu"),
        (["model.paths={a}"], "set model.source"),
        (["tls.enabled=true"], "tls.secretName"),
        (["tls.clientCASecretName=a"], "tls.enabled"),
        (["model.source=pvc", "model.pvc.claimName=a"], "model.paths"),
        (["model.source=pvc", "model.paths={a}"], "model.pvc.claimName"),
        (["model.source=oci", "model.paths={a}"], "model.oci.reference"),
        (["model.source=download", "model.paths={a}"], "model.download.sha256"),
        (["ingress.enabled=true"], "ingress.host"),
        (["route.enabled=true"], "route.parentRefs"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values, complaint, helm):
    done = helm("template", "replies", CHART, *options("default", *values))
    assert done.returncode != 0
    assert complaint in done.stderr


def test_an_image_volume_is_refused_where_kubernetes_has_none(helm):
    done = helm("template", "replies", CHART, *options("model-oci", version="1.29"))
    assert done.returncode != 0
    assert "expected Kubernetes 1.31 or later, got v1.29.0" in done.stderr


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_pod_is_killed_after_its_drain_never_within(scenario, render):
    pod = pod_of(render(scenario))["spec"]
    (container,) = pod["containers"]
    (drain,) = [a for a in container["args"] if a.startswith("--drain-seconds=")]
    pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pre_stop + int(drain.partition("=")[2])


def test_a_grace_period_that_is_too_short_is_refused_and_the_shortest_is_not(helm, render):
    drain = "drain.preStopSeconds=7,drain.seconds=20,drain.terminationGracePeriodSeconds="
    done = helm("template", "replies", CHART, "--set", f"{drain}28")
    assert done.returncode != 0
    assert "terminationGracePeriodSeconds is 28" in done.stderr
    assert "at least 29" in done.stderr
    pod = pod_of(render("default", f"{drain}29"))["spec"]
    assert pod["terminationGracePeriodSeconds"] == 29


def test_pods_of_an_old_kubernetes_wait_by_a_command(render):
    container = server_of(render("default", version="1.29"))
    assert container["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "5"]}}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_port_that_is_named_or_probed_is_a_port_of_the_server(scenario, render):
    manifests = render(scenario)
    container = server_of(manifests)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert f"--port={ports['grpc']}" in container["args"]
    assert f"--metrics-port={ports['metrics']}" in container["args"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "--insecure" in container["args"]:
            assert container[probe]["grpc"]["port"] == ports["grpc"]
        else:  # Kubernetes speaks no gRPC through TLS
            assert container[probe]["httpGet"]["port"] in ports
    for service in of_kind(manifests, "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports)
    for policy in of_kind(manifests, "NetworkPolicy"):
        for rule in policy["spec"]["ingress"]:
            assert {port["port"] for port in rule["ports"]} <= set(ports)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_selects_pods_selects_the_servers_and_not_the_test(scenario, render):
    manifests = render(scenario)
    labels = pod_of(manifests)["metadata"]["labels"]
    test_labels = the(manifests, "Pod")["metadata"]["labels"]
    selectors = [m["spec"]["selector"] for m in of_kind(manifests, "Service")]
    for manifest in of_kind(manifests, "Deployment", "PodDisruptionBudget", "PodMonitor"):
        selectors.append(manifest["spec"]["selector"]["matchLabels"])
    for policy in of_kind(manifests, "NetworkPolicy"):
        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
    for spread in pod_of(manifests)["spec"].get("topologySpreadConstraints", []):
        selectors.append(spread["labelSelector"]["matchLabels"])
    assert len(selectors) >= 4
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= test_labels.items()


def test_no_selector_moves_with_labels_or_versions(render, helm, tmp_path):
    changed = render("default", "commonLabels.team=a,podLabels.tier=b,image.tag=v9")
    selector = the(changed, "Deployment")["spec"]["selector"]
    assert selector == the(render("default"), "Deployment")["spec"]["selector"]
    newer = shutil.copytree(CHART, tmp_path / "siserve")
    text = (newer / "Chart.yaml").read_text()
    (newer / "Chart.yaml").write_text(re.sub(r"\b(v|appV)ersion: .*", r"\1ersion: 7.0.0", text))
    done = helm("template", "replies", newer)
    assert "siserve-7.0.0" in done.stdout
    assert the(list(yaml.safe_load_all(done.stdout)), "Deployment")["spec"]["selector"] == selector


def test_a_users_label_cannot_take_the_place_of_the_charts(render):
    pod = pod_of(render("default", r"commonLabels.app\.kubernetes\.io/name=x"))
    assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "siserve"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_option_and_variable_of_a_pod_is_one_of_siserve(scenario, render, help_of):
    manifests = render(scenario)
    (test,) = the(manifests, "Pod")["spec"]["containers"]
    for container in (server_of(manifests), test):
        command, *arguments = container["args"]
        known = help_of(command)
        for argument in arguments:
            if argument.startswith("-"):
                name = argument.partition("=")[0]
                assert re.search(rf"(^|[ /,]){re.escape(name)}\b", known, re.MULTILINE), name
        for variable in container.get("env", []):
            if variable["name"].startswith("SISERVE_"):
                assert re.search(rf"\b{variable['name']}\b", known), variable["name"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_container_keeps_to_the_restricted_profile(scenario, render):
    manifests = render(scenario)
    for pod in (pod_of(manifests)["spec"], the(manifests, "Pod")["spec"]):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"] + pod.get("initContainers", []):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("scenario", ["model-pvc", "model-oci", "model-download"])
def test_a_model_from_outside_is_mounted_where_the_server_looks_and_cannot_be_changed(
    scenario, render
):
    manifests = render(scenario)
    container = server_of(manifests)
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "models"]
    models = [a.partition("=")[2] for a in container["args"] if a.startswith("--model=")]
    assert models
    assert all(model.startswith(f"{mount['mountPath']}/") for model in models)
    assert mount["readOnly"] is True
    assert "models" in {volume["name"] for volume in pod_of(manifests)["spec"]["volumes"]}


def test_only_a_download_of_the_model_leaves_the_pod(render):
    for scenario in SCENARIOS:
        policy = the(render(scenario), "NetworkPolicy")["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        ports = [port["port"] for rule in policy["egress"] for port in rule["ports"]]
        assert ports == ([53, 53, 8443] if scenario == "model-download" else [])


def test_the_test_may_call_where_few_others_may(render):
    manifests = render("full")
    (rule,) = the(manifests, "NetworkPolicy")["spec"]["ingress"]
    selectors = [p["podSelector"]["matchLabels"] for p in rule["from"] if "podSelector" in p]
    labels = the(manifests, "Pod")["metadata"]["labels"]
    assert any(selector.items() <= labels.items() for selector in selectors)


@pytest.mark.parametrize("scenario", ["autoscaling-cpu", "autoscaling-rows", "keda"])
def test_what_scales_pods_is_alone_in_it_and_asks_for_a_metric_that_is_there(scenario, render):
    manifests = render(scenario)
    deployment = the(manifests, "Deployment")
    assert "replicas" not in deployment["spec"]
    (scaler,) = of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    metrics = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    assert set(re.findall(r"siserve_\w+", json.dumps(scaler["spec"]))) <= metrics
    if scenario == "autoscaling-cpu":
        assert "cpu" in server_of(manifests)["resources"]["requests"]


@pytest.mark.parametrize("scenario", ["autoscaling-cpu", "autoscaling-rows"])
def test_each_pod_is_scraped_once(scenario, render):
    manifests = render(scenario)
    (monitor,) = of_kind(manifests, "ServiceMonitor", "PodMonitor")
    is_service = monitor["kind"] == "ServiceMonitor"
    (end,) = monitor["spec"]["endpoints" if is_service else "podMetricsEndpoints"]
    assert end["port"] == "metrics"
    if is_service:
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (absent,) = monitor["spec"]["selector"]["matchExpressions"]
        labels = [service["metadata"]["labels"] for service in of_kind(manifests, "Service")]
        assert len(labels) == 2
        assert [wanted.items() <= own.items() and absent["key"] not in own for own in labels] == [
            True,
            False,
        ]


def test_the_rules_are_those_of_deploy(render):
    rules = yaml.safe_load((ROOT / "deploy" / "alerts" / "siserve.rules.yaml").read_text())
    assert the(render("autoscaling-rows"), "PrometheusRule")["spec"] == rules, "run make chart"


@pytest.mark.parametrize(
    ("scenario", "values", "variable", "argument"),
    [
        ("default", [], "requests.cpu", None),
        ("default", ["resources.limits.cpu=2"], "limits.cpu", None),
        ("default", ["resources.requests.cpu=null"], None, None),
        ("default", ["resources.limits.cpu=2", "server.workers=3"], None, "3"),
        ("gpu", ["resources.limits.cpu=2"], None, None),
    ],
)
def test_as_many_batches_are_decoded_at_once_as_a_pod_has_cpus(
    render, scenario, values, variable, argument
):
    container = server_of(render(scenario, *values))
    found = [each for each in container.get("env", []) if each["name"] == "SISERVE_WORKERS"]
    fields = [each["valueFrom"]["resourceFieldRef"] for each in found]
    assert fields == ([{"resource": variable, "divisor": "1"}] if variable else [])
    told = [each for each in container["args"] if each.startswith("--workers")]
    assert told == ([f"--workers={argument}"] if argument else [])


def test_a_gpu_brings_its_image_its_device_and_its_limit(render):
    container = server_of(render("gpu"))
    assert container["image"].endswith("-cuda")
    assert "--device=cuda" in container["args"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "--device=cpu" in server_of(render("default"))["args"]


def test_routes_lead_to_the_service(render):
    for scenario, kind in (("ingress", "Ingress"), ("route", "GRPCRoute")):
        manifests = render(scenario)
        service = of_kind(manifests, "Service")[0]
        (rule,) = the(manifests, kind)["spec"]["rules"]
        if kind == "Ingress":
            (path,) = rule["http"]["paths"]
            backend = path["backend"]["service"]
            assert backend["port"]["name"] == service["spec"]["ports"][0]["name"]
        else:
            (backend,) = rule["backendRefs"]
            assert backend["port"] == service["spec"]["ports"][0]["port"]
        assert backend["name"] == service["metadata"]["name"]


def test_no_test_is_made_that_could_not_get_in(render):
    keys, clients = (
        "keys.secretName=a",
        "tls.enabled=true,tls.secretName=a,tls.clientCASecretName=b",
    )
    for values, number in (
        (keys, 0),
        (f"{keys},test.keySecretName=c", 1),
        (clients, 0),
        (f"{clients},test.clientSecretName=c", 1),
    ):
        assert len(of_kind(render("default", values), "Pod")) == number


def test_the_notes_give_a_first_command_for_the_service_that_was_made(helm, help_of):
    arguments = ("--namespace", "dialog", "--dry-run=client", "--set", "service.port=80")
    done = helm("install", "replies", CHART, *arguments)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "port-forward service/replies-siserve 80:80" in notes
    assert 'siserve ask "how was your weekend?" --address 127.0.0.1:80' in notes
    assert "--address" in help_of("ask")


def test_the_chart_names_the_version_that_it_lies_beside():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def values_docs(chart: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "k8s" / "values_docs.py"), str(chart)]
    return subprocess.run(command, capture_output=True, text=True)


def test_readme_and_schema_are_what_the_values_make(tmp_path):
    copy = shutil.copytree(CHART, tmp_path / "siserve")
    assert values_docs(copy).returncode == 0
    for name in ("README.md", "values.schema.json"):
        assert (copy / name).read_text() == (CHART / name).read_text(), f"run make chart: {name}"


def test_a_value_without_a_description_is_refused_by_its_name(tmp_path):
    copy = shutil.copytree(CHART, tmp_path / "siserve")
    with (copy / "values.yaml").open("a") as values:
        values.write("\nundescribed: 1\n")
    done = values_docs(copy)
    assert (done.returncode, done.stderr) == (
        1,
        "values_docs: values.yaml: undescribed has no comment above it\n",
    )
