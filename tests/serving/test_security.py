"""Who gets in: certificates, keys, and what a refusal tells to whom."""

import os
import re
import shutil
import ssl
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from siserve.client import Client, ClientError, Credentials, make_request
from siserve.serving.errors import Unauthenticated
from siserve.serving.keys import Keyring, KeysError, add_key
from siserve.v1 import dialog_pb2_grpc

DIALOG = [("A", "hi , how was your weekend?")]


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def tls(signed) -> tuple[object, ...]:
    return ("--tls-cert", signed.certificate, "--tls-key", signed.key)


def refusal(client: Client) -> ClientError:
    with client, pytest.raises(ClientError) as refused:
        client.generate(DIALOG)
    return refused.value


# ---- keys


def test_a_key_opens_and_only_its_digest_is_kept(tmp_path):
    path = tmp_path / "keys.txt"
    keys = {name: add_key(path, name, name == "root") for name in ("ann", "bob", "root")}
    assert not any(key in path.read_text() for key in keys.values())
    assert path.stat().st_mode & 0o077 == 0
    keyring = Keyring(path)
    for name, key in keys.items():
        caller = keyring.identify([f"Bearer {key}"])
        assert (caller.name, caller.is_admin) == (name, name == "root")
        assert keyring.identify(["Basic x", f"bearer  {key}".encode()]).name == name
    told = set()
    for wrong in ([], [""], ["Bearer"], ["Bearer x"], [keys["ann"]], [f"Basic {keys['ann']}"]):
        with pytest.raises(Unauthenticated) as refused:
            keyring.identify(wrong)
        told.add(str(refused.value))
    assert len(told) == 1


@pytest.mark.parametrize(
    "content, expected",
    [
        ("", "no key"),
        ("# nothing\n", "no key"),
        ("ann secret", ":1: expected 'NAME sha256:HEX'"),
        ("ann sha256:" + "0" * 64 + "\nann sha256:" + "1" * 64, ":2: a second key named ann"),
    ],
)
def test_a_file_of_keys_that_is_wrong_is_named_by_its_line(tmp_path, content, expected):
    path = tmp_path / "keys.txt"
    path.write_text(content)
    with pytest.raises(KeysError, match=expected) as refused:
        Keyring(path)
    assert "secret" not in str(refused.value)


def test_names_of_keys_are_kept_apart(tmp_path):
    path = tmp_path / "keys.txt"
    add_key(path, "ann")
    with pytest.raises(KeysError, match="ann"):
        add_key(path, "ann")
    with pytest.raises(KeysError, match="no name"):
        add_key(path, "two words")
    path.write_text(path.read_text().rstrip("\n"))
    add_key(path, "bob")
    assert len(path.read_text().splitlines()) == 2


def test_without_a_valid_key_nothing_but_health_answers(start_server, run_siserve, tmp_path):
    path = tmp_path / "keys.txt"
    made = run_siserve("key", "ann", "--file", path)
    assert made.returncode == 0, made.stderr
    server = start_server("--keys-file", path)
    with server.client(credentials=Credentials(key=made.stdout.strip())) as client:
        assert len(client.generate(DIALOG).responses) == 5
        assert client.get_model().name == "tiny"
    refusals = [
        refusal(server.client(credentials=Credentials(key=key)))
        for key in ("", "wrong", made.stdout.strip()[:-1])
    ]
    assert {error.code for error in refusals} == {grpc.StatusCode.UNAUTHENTICATED}
    assert len({str(error) for error in refusals}) == 1
    with server.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        with pytest.raises(grpc.RpcError) as refused:  # not even whether a message parses
            channel.unary_unary("/siserve.v1.DialogService/GetModel")(b"\xff", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert reflection_code(channel) is grpc.StatusCode.UNAUTHENTICATED
        switched_off = reflection_code(channel, made.stdout.strip())
        assert switched_off is grpc.StatusCode.UNIMPLEMENTED
    counted = scrape(server, "siserve_requests_total")
    assert sum(value for name, value in counted.items() if "UNAUTHENTICATED" in name) == 4
    asked = run_siserve("ask", "hi", "--address", server.address, SISERVE_KEY=made.stdout.strip())
    assert asked.returncode == 0, asked.stderr


def scrape(server, name: str) -> dict[str, float]:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(name)
    }


def reflection_code(channel: grpc.Channel, key: str = "") -> grpc.StatusCode:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    query = reflection_pb2.ServerReflectionRequest(list_services="")
    metadata = Credentials(key=key).metadata
    try:
        list(stub.ServerReflectionInfo(iter([query]), timeout=10, metadata=metadata))
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_keys_change_without_a_restart_and_reflection_is_behind_them(start_server, tmp_path):
    path = tmp_path / "keys.txt"
    ann, bob = add_key(path, "ann"), add_key(path, "bob")
    server = start_server("--keys-file", path, "--reflection")

    def code_of(key: str) -> str:
        with server.client(credentials=Credentials(key=key)) as client:
            try:
                client.generate(DIALOG)
            except ClientError as error:
                return error.code.name
        return "OK"

    with server.channel() as channel:
        assert reflection_code(channel) is grpc.StatusCode.UNAUTHENTICATED
        assert reflection_code(channel, ann) is grpc.StatusCode.OK
    assert code_of(ann) == code_of(bob) == "OK"
    path.write_text(
        "".join(line for line in path.read_text().splitlines(True) if not line.startswith("bob"))
    )
    time.sleep(0.6)
    assert (code_of(ann), code_of(bob)) == ("OK", "UNAUTHENTICATED")
    path.write_text("not a key\n")
    time.sleep(0.6)
    assert (code_of(ann), code_of(bob)) == ("OK", "UNAUTHENTICATED")
    path.unlink()
    time.sleep(0.6)
    assert code_of(ann) == "OK"
    carol = add_key(path, "carol")
    time.sleep(0.6)
    assert (code_of(carol), code_of(ann)) == ("OK", "UNAUTHENTICATED")
    assert any("the keys in use stay" in line and ":1:" in line for line in server.log)
    assert not any(key in line for line in server.log for key in (ann, bob, carol))


def test_each_key_has_a_rate_of_its_own(start_server, tmp_path):
    path = tmp_path / "keys.txt"
    ann, bob = add_key(path, "ann"), add_key(path, "bob")
    server = start_server("--keys-file", path, "--rate", "0.1", "--burst", "5")
    for key in (ann, bob):
        with server.client(credentials=Credentials(key=key)) as client:
            client.generate(DIALOG)
            with pytest.raises(ClientError) as refused:
                client.generate(DIALOG)
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---- TLS


def test_tls_answers_who_trusts_the_authority_and_nobody_else(start_server, authority):
    server = start_server(*tls(authority.sign("server")))
    trusting = Credentials(tls_ca=authority.certificate)
    with server.client(credentials=trusting) as client:
        assert len(client.generate(DIALOG).responses) == 5
    stranger = Authority(authority.folder, "stranger")
    for credentials in (Credentials(), Credentials(tls_ca=stranger.certificate)):
        error = refusal(server.client(2, credentials))
        assert error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    (expiry,) = scrape(server, "siserve_certificate_expiry_timestamp_seconds").values()
    assert 86400 < expiry - time.time() < 3 * 86400


def test_mutual_tls_wants_a_certificate_of_the_right_authority(start_server, authority):
    server = start_server(*tls(authority.sign("server")), "--tls-client-ca", authority.certificate)
    mine = authority.sign("ann")
    other = Authority(authority.folder, "other").sign("eve")

    def credentials(signed) -> Credentials:
        return Credentials(
            tls_ca=authority.certificate, tls_cert=signed.certificate, tls_key=signed.key
        )

    with server.client(credentials=credentials(mine)) as client:
        assert len(client.generate(DIALOG).responses) == 5
    for wrong in (credentials(other), Credentials(tls_ca=authority.certificate)):
        error = refusal(server.client(2, wrong))
        assert error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_a_certificate_is_swapped_without_a_restart_and_a_bad_one_changes_nothing(
    start_server, tmp_path
):
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    live = tmp_path / "live"
    live.mkdir()

    def put(signed) -> None:
        shutil.copy(signed.certificate, live / "tls.crt")
        shutil.copy(signed.key, live / "tls.key")
        time.sleep(0.6)

    def trusts(authority: Authority) -> bool:
        credentials = Credentials(tls_ca=authority.certificate)
        with server.client(2, credentials) as client:
            try:
                return len(client.generate(DIALOG).responses) == 5
            except ClientError:
                return False

    put(first.sign("one"))
    server = start_server("--tls-cert", live / "tls.crt", "--tls-key", live / "tls.key")
    assert trusts(first) and not trusts(second)
    put(second.sign("expired", days=-1))
    assert trusts(first)
    (live / "tls.crt").write_text("garbage")
    time.sleep(0.6)
    assert trusts(first)
    put(second.sign("two"))
    assert trusts(second) and not trusts(first)
    assert any("has expired" in line for line in server.log)


def test_handshakes_that_are_refused_are_counted_at_both_doors(start_server, tmp_path):
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other", "other")
    server = start_server(
        *tls(ours.sign("server")), "--tls-client-ca", ours.certificate, "--http-port", "0"
    )

    def counted() -> tuple[float, ...]:
        found = scrape(server, "siserve_tls_")
        return tuple(found[f"siserve_tls_{name}_total"] for name in ("handshakes", "connections"))

    def shown(signed) -> Credentials:
        return Credentials(tls_ca=ours.certificate, tls_cert=signed.certificate, tls_key=signed.key)

    with server.client(credentials=shown(ours.sign("client"))) as client:
        for _ in range(3):
            client.generate(DIALOG)
    assert counted() == (1, 1)
    assert refusal(server.client(2, shown(other.sign("stranger")))).code.name == "UNAVAILABLE"
    began, met = counted()
    assert began > 1 and met == 1
    (url,) = re.findall(r"page on (https://\S+)", "\n".join(server.log))
    url = url.replace("127.0.0.1", "localhost")
    for signed, number_met in ((other.sign("stranger"), 1), (ours.sign("client"), 2)):
        context = ssl.create_default_context(cafile=ours.certificate)
        context.load_cert_chain(signed.certificate, signed.key)
        if number_met == 1:
            with pytest.raises(OSError):
                urllib.request.urlopen(url, timeout=10, context=context)
        else:
            urllib.request.urlopen(url, timeout=10, context=context).close()
        began += 1
        assert counted() == (began, number_met)


@pytest.mark.parametrize(
    "break_it, expected",
    [
        (lambda signed, folder: Path(signed.certificate).unlink(), "cannot be read"),
        (lambda signed, folder: Path(signed.key).write_text("x"), "that belongs together"),
    ],
)
def test_a_certificate_that_cannot_be_used_ends_the_start_in_one_line(
    run_siserve, bundle, tmp_path, break_it, expected
):
    signed = Authority(tmp_path).sign("server")
    break_it(signed, tmp_path)
    ended = run_siserve("serve", "--model", bundle, "--port", "0", *tls(signed))
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert expected in line and "server." in line


def test_an_expired_certificate_ends_the_start_in_one_line(run_siserve, bundle, authority):
    expired = authority.sign("expired", days=-1)
    ended = run_siserve("serve", "--model", bundle, "--port", "0", *tls(expired))
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "expired.crt" in line and "has expired" in line


# ---- what is open, and what is told


def test_beyond_this_machine_only_with_tls_or_when_told(run_siserve, start_server, authority):
    ended = run_siserve("serve", "--host", "0.0.0.0", "--port", "0")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "--host 0.0.0.0" in line and "--insecure" in line and "--tls-cert" in line
    half = run_siserve("serve", "--tls-cert", "x.pem", "--port", "0")
    assert half.returncode == 2 and "--tls-key" in half.stderr
    for options in (("--insecure",), tls(authority.sign("server"))):
        assert start_server("--host", "0.0.0.0", *options).lines


def test_what_goes_wrong_inside_is_told_without_names_of_the_inside(server):
    told = []
    with server.channel() as channel:
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        requests = [make_request(DIALOG, n=0), make_request(DIALOG, model="/etc/passwd")]
        for request in requests:
            with pytest.raises(grpc.RpcError) as refused:
                stub.GenerateResponses(request, timeout=10)
            told.append(str(refused.value.details()))
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/siserve.v1.DialogService/None")(b"", timeout=10)
        told.append(str(refused.value.details()))
    for text in told:
        assert "Error" not in text and "Traceback" not in text and ".py" not in text
        assert "/" not in text.replace("/etc/passwd", "")


def test_logs_hold_no_text_of_users(start_server):
    server = start_server()
    with server.client() as client:
        client.generate([("A", "my secret is swordfish")])
        with pytest.raises(ClientError):
            client.generate([("A", "my secret is swordfish")], n=0)
    server.process.terminate()
    assert server.finish() == 0
    assert not any("swordfish" in line for line in server.log)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_keys_that_may_not_be_read_end_the_start_in_one_line(run_siserve, tmp_path):
    path = tmp_path / "keys.txt"
    add_key(path, "ann")
    path.chmod(0)
    ended = run_siserve("serve", "--keys-file", path, "--port", "0")
    assert ended.returncode == 1 and "cannot be read" in ended.stderr
