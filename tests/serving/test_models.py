"""Models while the server runs: swapped without a gap, refused when bad, rolled back."""

import errno
import json
import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from bundle_factory import tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from siserve.bundle import BundleError, open_bundle
from siserve.client import Client, ClientError, Credentials
from siserve.serving.keys import add_key

DIALOG = [("A", "hi , how was your weekend?")]
HEALTH = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> dict[str, Path]:
    """Three models of one name, and one of another."""
    folder = tmp_path_factory.mktemp("versions")
    made = {
        version: tiny_bundle(folder / version, seed=int(version), name="live", version=version)
        for version in ("1", "2", "3")
    }
    return made | {"other": tiny_bundle(folder / "other", seed=9, name="other", version="1")}


@pytest.fixture
def shelf(tmp_path, versions) -> Path:
    """A watched folder that holds the first version."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    put(folder, "first", versions["1"])
    return folder


def put(shelf: Path, name: str, bundle: Path, flip: str = "") -> None:
    """Put a bundle in as tools do: written aside, then renamed; perhaps with a bit flipped."""
    aside = shelf / f".{name}.partial"
    shutil.copytree(bundle, aside)
    if flip:
        content = bytearray((aside / flip).read_bytes())
        content[len(content) // 2] ^= 1
        (aside / flip).write_bytes(content)
    aside.rename(shelf / name)


def watching(start_shelf, shelf: Path, *options: object):
    return start_shelf("--model-dir", shelf, "--watch-seconds", "0.1", "--admin", *options)


@pytest.fixture
def start_shelf(start_server):
    """Servers without the model that others have."""

    def start(*arguments: object, **variables: str):
        return start_server(*arguments, without_model=True, **variables)

    return start


def wait_for(condition, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answering(client: Client, model: str = "") -> str:
    return client.generate(DIALOG, n=2, seed=1, model=model).model


def test_a_bundle_that_is_put_in_answers_without_a_failed_call(start_shelf, shelf, versions):
    server = watching(start_shelf, shelf)
    assert server.lines == [f"serving live@1 on {server.address}"]
    stop = threading.Event()
    seen: list[str] = []

    def ask() -> None:
        with server.client() as client:
            while not stop.is_set():
                answer = client.generate(DIALOG, n=4, seed=3)
                seen.append(f"{answer.model} {[reply.text for reply in answer.responses]}")

    with ThreadPoolExecutor(4) as pool, server.client() as client:
        askers = [pool.submit(ask) for _ in range(4)]
        for number, version in enumerate("2312"):
            put(shelf, f"next{number}", versions[version])
            wait_for(lambda version=version: answering(client) == f"live@{version}")
        stop.set()
        for asker in askers:
            asker.result(20)
    assert len(set(seen)) == 3  # one answer a version: none is of two
    assert {text.split()[0] for text in seen} == {"live@1", "live@2", "live@3"}


@pytest.mark.parametrize("flip", ["weights.safetensors", "manifest.json", "tokenizer.json"])
def test_a_damaged_bundle_displaces_nothing_and_is_named(start_shelf, shelf, versions, flip):
    server = watching(start_shelf, shelf)
    with server.client() as client:
        put(shelf, "damaged", versions["2"], flip)
        wait_for(lambda: any("damaged is refused" in line for line in server.log))
        assert answering(client) == "live@1"
        with pytest.raises(ClientError, match=flip) as refused:
            client.load_model("damaged")
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert str(shelf) not in str(refused.value)
        put(shelf, "whole", versions["2"])
        wait_for(lambda: answering(client) == "live@2")
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        text = reply.read().decode()
    assert 'siserve_model_loads_total{result="refused"} 2.0' in text
    assert 'siserve_model_loads_total{result="served"} 1.0' in text
    assert sum("damaged is refused" in line for line in server.log) == 1


def test_files_that_change_or_shrink_in_place_do_no_harm(start_shelf, shelf, versions):
    server = watching(start_shelf, shelf)
    with server.client() as client:
        for path in sorted((shelf / "first").iterdir()):
            path.write_bytes(b"")
        wait_for(lambda: any("first is refused" in line for line in server.log))
        assert len(client.generate(DIALOG, n=64).responses) == 64
        shutil.rmtree(shelf / "first")
        time.sleep(0.3)
        assert answering(client) == "live@1"


def test_a_model_is_rolled_back_and_forth_and_both_answer_by_version(start_shelf, shelf, versions):
    server = watching(start_shelf, shelf)
    with server.client() as client:
        with pytest.raises(ClientError, match="only live") as refused:
            client.roll_back_model()
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        put(shelf, "second", versions["2"])
        assert client.load_model("second").version == "2"
        assert answering(client) == answering(client, "live") == "live@2"
        assert answering(client, "live@1") == "live@1"
        assert client.roll_back_model("live").version == "1"
        assert answering(client) == "live@1"
        states = [(model.version, model.is_current) for model in client.list_models()]
        assert states == [("1", True), ("2", False)]
        client.roll_back_model()
        put(shelf, "third", versions["3"])
        client.load_model("third")
        assert [model.version for model in client.list_models()] == ["3", "2"]
        with pytest.raises(ClientError, match="no such model"):
            answering(client, "live@1")


def test_a_new_name_is_served_beside_the_default(start_shelf, shelf, versions):
    server = watching(start_shelf, shelf)
    with server.client() as client:
        put(shelf, "other", versions["other"])
        wait_for(lambda: len(client.list_models()) == 2)
        assert (answering(client), answering(client, "other")) == ("live@1", "other@1")


@pytest.mark.parametrize("name", ["", "none", "..", "../shelf/first", "first/../first", "/etc"])
def test_only_bundles_of_the_watched_folder_are_loaded(start_shelf, shelf, name, request):
    server = request.getfixturevalue("shared_shelf")
    with server.client() as client, pytest.raises(ClientError) as refused:
        client.load_model(name)
    assert refused.value.code is grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def shared_shelf(tmp_path_factory, versions, start_for_module):
    folder = tmp_path_factory.mktemp("shelf")
    put(folder, "first", versions["1"])
    return start_for_module("--model-dir", folder, "--admin")


def test_without_admin_there_is_no_such_service(server):
    with server.client() as client, pytest.raises(ClientError) as refused:
        client.list_models()
    assert refused.value.code is grpc.StatusCode.UNIMPLEMENTED


def test_with_keys_only_an_admin_key_changes_models(start_server, run_siserve, tmp_path):
    path = tmp_path / "keys.txt"
    user, admin = add_key(path, "ann"), add_key(path, "root", is_admin=True)
    server = start_server("--keys-file", path, "--admin")
    for key, code in (("", "UNAUTHENTICATED"), (user, "PERMISSION_DENIED")):
        with server.client(credentials=Credentials(key=key)) as client:
            with pytest.raises(ClientError) as refused:
                client.roll_back_model()
            assert refused.value.code.name == code
    listed = run_siserve("models", "--address", server.address, "--json", SISERVE_KEY=admin)
    assert listed.returncode == 0, listed.stderr
    (model,) = json.loads(listed.stdout)["models"]
    assert (model["name"], model["is_current"], model["is_default"]) == ("tiny", True, True)
    bare = run_siserve("serve", "--admin", "--host", "0.0.0.0", "--insecure", "--port", "0")
    assert bare.returncode == 2 and "--keys-file" in bare.stderr


def test_a_folder_without_a_good_bundle_ends_the_start_in_one_line(run_siserve, tmp_path):
    ports = ("--port", "0", "--metrics-port", "0")
    ended = run_siserve("serve", "--model-dir", tmp_path, *ports)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "--model-dir" in line and "put one in" in line


def test_probes_tell_liveness_apart_from_readiness(start_server):
    server = start_server("--notice-seconds", "1")
    base = server.metrics_url.removesuffix("/metrics")

    def probe(path: str) -> int:
        try:
            with urllib.request.urlopen(base + path, timeout=10) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    with server.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def status(name: str) -> int:
            return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status

        assert status("liveness") == status("readiness") == status("") == HEALTH.SERVING
        assert (probe("/livez"), probe("/readyz"), probe("/nothing")) == (200, 200, 404)
        server.process.terminate()
        wait_for(lambda: status("readiness") == HEALTH.NOT_SERVING, 5)
        assert status("liveness") == HEALTH.SERVING
        assert (probe("/livez"), probe("/readyz")) == (200, 503)
    assert server.finish() == 0


def test_an_engine_that_stands_still_with_work_says_so(sessions, manifest, bundle):
    from siserve.serving.encoding import Context
    from siserve.serving.engine import Engine, EngineOptions
    from siserve.serving.flight import Job
    from siserve.serving.metrics import Metrics

    tokens = open_bundle(bundle).manifest.tokens
    context = Context(((tokens.start, tokens.dialog_start, tokens.end),), (0,))
    engine = Engine(sessions, manifest, EngineOptions(), Metrics().engine_observer())
    assert engine.stalled_seconds == 0
    job = Job(context, n=1, seed=0, temperature=1.0, top_k=0, top_p=1.0, max_tokens=4)
    result = engine.submit(job)
    time.sleep(0.1)
    assert 0.1 <= engine.stalled_seconds < 10
    engine.start()
    result.result(10)
    wait_for(lambda: engine.stalled_seconds == 0)
    engine.stop()


@pytest.mark.parametrize(("number", "step"), [(errno.EROFS, "mkdtemp"), (errno.ENOSPC, "copy2")])
def test_a_disk_that_takes_no_copy_refuses_the_bundle_and_says_why(
    bundle, monkeypatch, number, step
):
    from siserve.serving import library

    def fails(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/else")

    if step == "mkdtemp":
        monkeypatch.setattr(tempfile, step, fails)
    else:  # copytree's default was bound when shutil was read
        monkeypatch.setattr(shutil.copytree, "__defaults__", (False, None, fails, False, False))
    with pytest.raises(BundleError, match=os.strerror(number)) as refused:
        library._load_copy(lambda path: pytest.fail("loaded"), bundle)
    assert "/" not in str(refused.value)
