"""The HTTP door: the same answers as gRPC in JSON, refusals that say why, and a page to try it."""

import contextlib
import http.client
import json
import re
import signal
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from certificates import Authority
from siserve.serving.keys import add_key

DIALOG = [{"speaker": "A", "text": "hi , how was your weekend?"}]
JSON = {"Content-Type": "application/json"}


def door(server) -> str:
    deadline = time.monotonic() + 10
    while not (found := re.findall(r"page on https?://([^/]+)/", "\n".join(server.log))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


@pytest.fixture(scope="module")
def shared(start_for_module, bundle):
    return start_for_module("--model", bundle, "--http-port", "0")


@pytest.fixture
def ask(shared):
    """Send one request; status, headers and body of the reply."""
    connection = http.client.HTTPConnection(door(shared), timeout=30)

    def send(method: str, path: str, body=None, headers=JSON) -> tuple[int, dict, bytes]:
        sent = json.dumps(body) if isinstance(body, (dict, list)) else body
        connection.request(method, path, sent, headers)
        reply = connection.getresponse()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()

    yield send
    connection.close()


def test_json_gives_what_grpc_gives(ask, shared):
    status, headers, body = ask(
        "POST", "/v1/responses", {"context": DIALOG, "n": 4, "seed": "18446744073709551615"}
    )
    told = json.loads(body)
    assert status == 200 and headers["content-type"] == "application/json"
    assert told["seed"] == str(2**64 - 1) and told["model"] == "tiny@1"
    with shared.client() as client:
        answer = client.generate([("A", DIALOG[0]["text"])], n=4, seed=2**64 - 1)
    assert [r["text"] for r in told["responses"]] == [reply.text for reply in answer.responses]
    assert told["distinct1"] == answer.distinct_1
    status, _, body = ask("GET", "/v1/model")
    assert status == 200 and json.loads(body)["limits"]["maxResponses"] == 64


def test_a_model_is_asked_for_by_name(ask):
    status, _, body = ask("GET", "/v1/model?model=tiny%401")
    assert status == 200 and body == ask("GET", "/v1/model")[2]
    for query, status, field in (("model=huge", 404, "model"), ("mode=tiny", 400, "query")):
        got, _, body = ask("GET", f"/v1/model?{query}")
        assert got == status and json.loads(body)["error"]["message"].startswith(f"{field}: ")


def test_variants_and_scores_are_asked_alike(ask):
    generate = {"context": DIALOG, "n": 3, "seed": "1"}
    status, _, body = ask("POST", "/v1/variants", {"generate": generate, "response": "it was ok"})
    assert status == 200 and len(json.loads(body)["variants"]["responses"]) == 3
    asked = {"context": DIALOG, "responses": ["it was ok"], "numSamples": 10, "seed": "1"}
    status, _, body = ask("POST", "/v1/scores", asked)
    assert status == 200 and json.loads(body)["scores"][0]["logProb"] < 0


@pytest.mark.parametrize(
    "body, status, text",
    [
        ({"context": DIALOG, "n": 0}, 400, "n: "),
        ({"context": []}, 400, "context: "),
        ({"context": DIALOG, "model": "huge"}, 404, "model: "),
        ({"context": DIALOG, "colour": "red"}, 400, "body: "),
        ({"context": DIALOG, "n": -1}, 400, "body: "),
        ({"context": DIALOG, "n": 1e300}, 400, "body: "),
        ({"context": DIALOG, "temperature": "NaN"}, 400, "temperature: "),
        ([], 400, "body: "),
        ("", 400, "body: "),
        ("{", 400, "body: "),
        ("null", 400, "body: "),
        ("[" * 100_000, 400, "body: "),
        (b"\xff\xfe", 400, "body: "),
        ('{"context": [{"speaker": "A", "text": "\\ud800"}]}', 400, "body: "),
        ({"context": {"context": DIALOG}}, 400, "body: "),
        ('{"context": [' + "{}," * 600_000 + "{}]}", 400, "context: "),
    ],
)
def test_a_wrong_request_is_refused_by_name(ask, body, status, text):
    got, headers, reply = ask("POST", "/v1/responses", body)
    error = json.loads(reply)["error"]
    assert (got, error["code"]) == (status, status)
    assert error["message"].startswith(text), error
    assert "Error" not in error["message"] and ".py" not in error["message"]
    assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])


def test_other_paths_methods_and_kinds_are_refused(ask):
    assert ask("GET", "/v2")[0] == 404
    assert ask("GET", "/../../etc/passwd")[0] == 404
    status, headers, _ = ask("GET", "/v1/responses")
    assert (status, headers["allow"]) == (405, "POST")
    assert ask("POST", "/")[0] == 405
    simple = {"Content-Type": "text/plain"}  # what another site's form could send
    assert ask("POST", "/v1/responses", json.dumps({"context": DIALOG}), simple)[0] == 400


def test_bodies_and_headers_beyond_the_limits_are_refused_and_the_door_lives(ask, shared):
    host, port = door(shared).split(":")
    for sent, expected in (
        (b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * 50_000 + b"\r\n\r\n", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    ):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(sent)
            if expected == b"413":
                with contextlib.suppress(OSError):  # refused before all of it is sent
                    for _ in range(40):
                        connection.sendall(b"x" * (64 << 10))
            try:
                reply = connection.recv(100)
            except ConnectionError:
                reply = b"HTTP/1.1 " + expected
            assert reply.startswith(b"HTTP/1.1 " + expected), (sent[:20], reply)
    assert ask("GET", "/v1/model")[0] == 200


def test_openapi_describes_every_path_and_every_reference_is_there(ask):
    document = json.loads(ask("GET", "/openapi.json")[2])
    assert set(document["paths"]) == {"/v1/responses", "/v1/variants", "/v1/scores", "/v1/model"}
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    (parameter,) = document["paths"]["/v1/model"]["get"]["parameters"]
    assert parameter == {"name": "model", "in": "query", "schema": {"type": "string"}}
    request = document["components"]["schemas"]["GenerateResponsesRequest"]["properties"]
    assert {"context", "n", "seed", "temperature", "maxTokens", "diversity"} <= set(request)
    assert request["seed"]["type"] == "string"


def test_keys_limits_and_metrics_hold_for_this_door_too(start_server, tmp_path):
    path = tmp_path / "keys.txt"
    key = add_key(path, "ann")
    server = start_server("--http-port", "0", "--keys-file", path, "--rate", "0.1", "--burst", "5")
    connection = http.client.HTTPConnection(door(server), timeout=30)

    def status_of(headers: dict) -> tuple[int, http.client.HTTPMessage]:
        connection.request("POST", "/v1/responses", json.dumps({"context": DIALOG}), headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status, reply.headers

    assert status_of(JSON)[0] == 401
    known = JSON | {"Authorization": f"Bearer {key}", "X-Request-Id": "mine"}
    status, headers = status_of(known)
    assert status == 200 and headers["X-Request-Id"] == "mine"
    status, headers = status_of(known)
    assert status == 429 and 1 <= int(headers["Retry-After"]) <= 50
    connection.close()
    server.process.send_signal(signal.SIGTERM)
    assert server.finish() == 0
    assert any("door=http" in line and "caller=ann" in line for line in server.log)


def test_tls_holds_for_this_door_too(start_server, tmp_path):
    authority = Authority(tmp_path)
    signed = authority.sign("server")
    server = start_server(
        "--http-port", "0", "--tls-cert", signed.certificate, "--tls-key", signed.key
    )
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    connection = http.client.HTTPSConnection(door(server), timeout=30, context=trusting)
    connection.request("GET", "/v1/model")
    assert connection.getresponse().status == 200
    connection.close()


def test_who_goes_away_stops_its_work_and_silence_is_closed(start_server):
    server = start_server("--http-port", "0", "--handshake-seconds", "0.5", "--max-rows", "1")
    host, port = door(server).split(":")
    body = json.dumps({"context": DIALOG * 60, "n": 64}).encode()
    head = "POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for _ in range(20):
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda connection: is_closed(connection, 20), silent))
    connection = http.client.HTTPConnection(f"{host}:{port}", timeout=30)
    connection.request("GET", "/v1/model")
    assert connection.getresponse().status == 200
    connection.close()


def is_closed(connection: socket.socket, seconds: float) -> bool:
    with connection:
        connection.settimeout(seconds)
        return connection.recv(100) == b""


# ---- the page


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, *tags: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(ask):
    status, headers, body = ask("GET", "/")
    page = Page(body.decode())
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    links = [
        attributes.get("src") or attributes.get("href")
        for attributes in page.all("script", "link", "img")
    ]
    for link in links:
        assert link == "data:," or ask("GET", link)[0] == 200
    assert not [a for _, a in page.elements if any(k.startswith("on") or k == "style" for k in a)]
    script, style = (ask("GET", path)[2].decode() for path in ("/page.js", "/page.css"))
    assert not re.search(r"https?://|innerHTML|eval\(", script + style)


def test_every_control_of_the_page_has_a_label_and_an_order(ask):
    page = Page(ask("GET", "/")[2].decode())
    labels = {attributes["for"] for attributes in page.all("label")}
    controls = {attributes["id"] for attributes in page.all("input")}
    assert controls == labels
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in str(page.all("meta"))
    assert not [a for _, a in page.elements if "tabindex" in a]  # the order is that of the page
    assert len(page.all("main")) == len(page.all("h1")) == 1


def test_the_colours_of_the_page_have_contrast(ask):
    css = ask("GET", "/page.css")[2].decode()
    for theme in re.findall(r":root \{([^}]*)\}", css):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", theme))
        pairs = [(name, "paper") for name in ("ink", "quiet", "wrong")]
        pairs += [("ink", "panel"), ("quiet", "panel"), ("on-accent", "accent")]
        for front, back in pairs:
            assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
        assert contrast(colours["accent"], colours["paper"]) >= 3  # of the focus ring


def contrast(first: str, second: str) -> float:
    """Contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
