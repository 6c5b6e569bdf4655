"""A request is checked field by field before any work; the refusal begins with the field."""

import pytest
from siserve.bundle.manifest import Manifest
from siserve.client.answer import make_request
from siserve.serving.errors import InvalidRequest
from siserve.serving.requests import RequestLimits, Turn, check_request, other_speaker
from siserve.v1.dialog_pb2 import GenerateResponsesRequest

HELLO = [("A", "hello there")]
LIMITS = RequestLimits()


def refusal(manifest: Manifest, request: GenerateResponsesRequest, **limits: int) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        check_request(request, manifest, RequestLimits(**limits))
    assert str(refused.value).startswith(f"{refused.value.field}: ")
    return refused.value


def test_absent_options_are_the_bundles_own_and_n_is_five(manifest):
    checked = check_request(make_request(HELLO), manifest, LIMITS)
    defaults = manifest.sampling
    assert (checked.n, checked.seed, checked.dialog.topic) == (5, None, 0)
    assert (checked.temperature, checked.top_k) == (defaults.temperature, defaults.top_k)
    assert (checked.top_p, checked.max_tokens) == (defaults.top_p, defaults.max_tokens)
    assert checked.diversity == 0


def test_options_at_their_bounds_are_taken(manifest):
    longest, words = manifest.limits.response_tokens, manifest.sizes.vocabulary
    for options in (
        {"n": 1, "seed": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_tokens": 1},
        {"n": 64, "seed": 2**64 - 1, "temperature": 10.0, "top_k": words, "max_tokens": longest},
        {"temperature": 0.01, "top_p": 1e-6, "diversity": 0.0},
        {"diversity": 1.0},
    ):
        checked = check_request(make_request(HELLO, **options), manifest, LIMITS)
        for name, value in options.items():
            assert getattr(checked, name) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    "options, field",
    [
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": 2**32 - 1}, "n"),  # what -1 is on the wire
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 0.001}, "temperature"),
        ({"temperature": 11.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 10**9}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": -1.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"diversity": -0.1}, "diversity"),
        ({"diversity": 1.01}, "diversity"),
        ({"diversity": float("nan")}, "diversity"),
        ({"diversity": float("inf")}, "diversity"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 41}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"topic": "NO SUCH TOPIC"}, "topic"),
        ({"topic": "x" * 257}, "topic"),
        ({"responder": "é" * 129}, "responder"),
        ({"model": "m" * 1000}, "model"),
    ],
)
def test_an_option_beyond_its_bounds_is_refused_by_name(manifest, options, field):
    assert refusal(manifest, make_request(HELLO, **options)).field == field


def test_a_context_beyond_its_bounds_is_refused_by_name(manifest):
    assert refusal(manifest, make_request([])).field == "context"
    assert refusal(manifest, make_request(HELLO * 65)).field == "context"
    assert refusal(manifest, make_request(HELLO * 10_000)).field == "context"
    check_request(make_request(HELLO * 64), manifest, LIMITS)
    long = [("A", "x" * 10_000), ("B", "y" * 10_000)]
    assert refusal(manifest, make_request(long)).field == "context[1].text"
    assert refusal(manifest, make_request([("A", "é" * 8193)])).field == "context[0].text"
    check_request(make_request([("A", "é" * 8192)]), manifest, LIMITS)
    for empty in ("", " \t\n"):
        assert refusal(manifest, make_request([*HELLO, ("B", empty)])).field == "context[1].text"
    assert refusal(manifest, make_request([("A" * 257, "hi")])).field == "context[0].speaker"


def test_limits_can_be_set(manifest):
    assert refusal(manifest, make_request(HELLO, n=3), max_responses=2).field == "n"
    assert refusal(manifest, make_request(HELLO * 3), max_turns=2).field == "context"
    assert refusal(manifest, make_request(HELLO), max_text_bytes=4).field == "context[0].text"
    with pytest.raises(ValueError, match="max_turns"):
        RequestLimits(max_turns=0)


def test_topics_are_numbered_from_one(manifest):
    for number, topic in enumerate(manifest.features.topics, start=1):
        checked = check_request(make_request(HELLO, topic=topic), manifest, LIMITS)
        assert checked.dialog.topic == number


def test_the_responder_is_who_did_not_speak_last():
    assert other_speaker([Turn("A", ""), Turn("B", "")]) == "A"
    assert other_speaker([Turn("A", ""), Turn("B", ""), Turn("A", "")]) == "B"
    assert other_speaker([Turn("A", ""), Turn("C", ""), Turn("B", ""), Turn("B", "")]) == "C"
    assert other_speaker([Turn("A", "")]) != "A"
