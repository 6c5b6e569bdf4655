"""The manifest of distributed training, as far as it can be judged without its operator."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from .conftest import NEWEST, ROOT, OneKeyOnce, find_tool

CLAIM, JOB = yaml.load_all((ROOT / "k8s/training/pytorchjob.yaml").read_text(), OneKeyOnce)
REPLICAS: dict[str, Any] = JOB["spec"]["pytorchReplicaSpecs"]
POD = REPLICAS["Worker"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
(SCRIPT,) = CONTAINER["args"]


@pytest.mark.parametrize("version", ["1.29", NEWEST])
def test_claim_and_pods_are_valid(version, tmp_path):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, "spec": POD}
    (tmp_path / "pods.yaml").write_text(yaml.safe_dump_all([CLAIM, pod]))
    command = [find_tool("kubernetes-validate"), "-k", version, "--strict", "--quiet"]
    command.append(str(tmp_path / "pods.yaml"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pods_meet_as_many_as_are_made():
    policy = JOB["spec"]["elasticPolicy"]
    assert list(REPLICAS) == ["Worker"]
    assert policy["minReplicas"] == policy["maxReplicas"] == REPLICAS["Worker"]["replicas"]


def test_pods_restart_and_torchrun_does_not():
    assert REPLICAS["Worker"]["restartPolicy"] == "OnFailure"
    assert JOB["spec"]["elasticPolicy"]["maxRestarts"] == 0


def test_pods_find_the_claim_where_the_command_looks():
    (volume,) = [v for v in POD["volumes"] if "persistentVolumeClaim" in v]
    assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    (mount,) = [m for m in CONTAINER["volumeMounts"] if m["name"] == volume["name"]]
    for option in ("--data", "--out"):
        (folder,) = re.findall(rf"{option} (\S+)", SCRIPT)
        assert folder.startswith(f"{mount['mountPath']}/")


def test_the_command_is_one_of_siserve(help_of):
    for option in re.findall(r"(--\w[\w-]*)", SCRIPT):
        assert option in help_of("train"), option


def test_a_run_is_resumed_exactly_where_one_is(tmp_path):
    script = SCRIPT.replace("/volume", str(tmp_path)).replace("exec torchrun", "echo")

    def asked() -> str:
        command = [*CONTAINER["command"], script]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "--resume" not in asked()
    (tmp_path / "run").mkdir()
    assert "--resume" not in asked()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert asked().rstrip().endswith("--resume")
