"""Clients that share no code with siserve: Node from protos/ alone, and one by reflection."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NODE_CLIENT = Path(__file__).with_name("node")
BUF = Path(sys.executable).with_name("buf")
INVALID_ARGUMENT = 3

CONTEXT = [
    {"speaker": "A", "text": "hi there"},
    {"speaker": "B", "text": "hello how are you"},
]

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="session")
def node_client() -> Path:
    """The Node client with its packages, installed once for each lock file, outside git."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    lock = (NODE_CLIENT / "package-lock.json").read_bytes()
    folder = ROOT / ".cache" / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    installed = folder / ".installed"
    if not installed.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(NODE_CLIENT / name, folder)
        subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True, timeout=110)
        installed.touch()
    shutil.copy(NODE_CLIENT / "ask.js", folder)
    return folder / "ask.js"


@pytest.fixture
def ask_from_node(node_client: Path, address: str) -> Ask:
    def ask(request: dict[str, Any]) -> dict[str, Any]:
        command = ["node", str(node_client), str(ROOT / "protos"), address, json.dumps(request)]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert asked.returncode == 0, asked.stderr
        reply: dict[str, Any] = json.loads(asked.stdout)
        return reply

    return ask


@pytest.fixture
def ask_by_reflection(address: str) -> Ask:
    if not BUF.exists():
        pytest.skip("buf is not installed")

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        url = f"http://{address}/siserve.v1.DialogService/GenerateResponses"
        options = ["--protocol", "grpc", "--http2-prior-knowledge", "--data", json.dumps(request)]
        asked = subprocess.run(
            [str(BUF), "curl", *options, url],
            cwd="/",  # away from buf.yaml: the schema comes from the server
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert asked.returncode == 0, asked.stderr
        reply: dict[str, Any] = json.loads(asked.stdout)
        return reply

    return ask


def test_a_node_client_gets_five_responses_when_it_names_no_number(ask_from_node: Ask) -> None:
    reply = ask_from_node({"context": CONTEXT})
    assert len(reply["responses"]) == 5
    assert all(response["text"] for response in reply["responses"])
    assert 0 < reply["distinct_1"] <= 1 and int(reply["seed"]) >= 0


def test_the_same_seed_gives_a_node_client_the_same_bytes(ask_from_node: Ask) -> None:
    largest_seed = str(2**64 - 1)
    first = ask_from_node({"context": CONTEXT, "seed": largest_seed})
    again = ask_from_node({"context": CONTEXT, "seed": largest_seed})
    other = ask_from_node({"context": CONTEXT, "seed": "1"})
    assert first["seed"] == again["seed"] == largest_seed
    assert json.dumps(first["responses"]) == json.dumps(again["responses"])
    assert first["responses"] != other["responses"]


def test_a_node_client_is_told_which_field_is_wrong(ask_from_node: Ask) -> None:
    refusal = ask_from_node({"context": CONTEXT, "n": 0})
    assert refusal["code"] == INVALID_ARGUMENT
    assert refusal["details"].startswith("n")


def test_a_node_client_asks_for_diversity(ask_from_node: Ask) -> None:
    request = {"context": CONTEXT, "seed": "3", "n": 4}
    diverse = ask_from_node({**request, "diversity": 0.9})
    assert len({response["text"] for response in diverse["responses"]}) == 4
    assert diverse["responses"] != ask_from_node(request)["responses"]
    refusal = ask_from_node({**request, "diversity": 1.5})
    assert refusal["code"] == INVALID_ARGUMENT
    assert refusal["details"].startswith("diversity")


def test_a_reflection_client_gets_five_responses(ask_by_reflection: Ask) -> None:
    reply = ask_by_reflection({"context": CONTEXT, "seed": 11})
    assert len(reply["responses"]) == 5
    assert reply["seed"] == "11"


def test_two_languages_get_the_same_texts(ask_from_node: Ask, ask_by_reflection: Ask) -> None:
    request = {"context": CONTEXT, "seed": 5, "n": 3}
    texts = [
        [r["text"] for r in ask(request)["responses"]] for ask in (ask_from_node, ask_by_reflection)
    ]
    assert texts[0] == texts[1]
