"""What no request may hold is seen before objects are made of it; the refusal names the field."""

import json

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from siserve.bundle import wire
from siserve.client.answer import make_request
from siserve.serving.doors import ADMIN, DIALOG
from siserve.serving.errors import InvalidRequest
from siserve.serving.parsing import MAX_FIELDS_SEARCHED, QUICK_BYTES, parse, parse_json, parse_query
from siserve.serving.requests import RequestLimits, check_request
from siserve.v1.dialog_pb2 import (
    GenerateResponsesRequest,
    GetModelRequest,
    ScoreResponsesRequest,
    Utterance,
    VaryResponseRequest,
)

HELLO = [("A", "hello there")]
LIMITS = RequestLimits()
EMPTY_TURN = b"\x0a\x00"
REQUESTS = [method.input_type for service in (DIALOG, ADMIN) for method in service.methods]


def refusal(kind, serialized: bytes, limits: RequestLimits = LIMITS) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        parse(kind, serialized, limits)
    assert str(refused.value).startswith(f"{refused.value.field}: ")
    return refused.value


def wire_text(field: int, text: bytes) -> bytes:
    """Write a field of bytes: its key, their number in digits of seven bits, themselves."""
    size, digits = len(text), bytearray()
    while size >= 128:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([field << 3 | 2, *digits, size]) + text


@pytest.mark.parametrize(
    "serialized, field",
    [
        (wire_text(1, wire_text(1, b"A") + wire_text(2, b"\xff\xfe")), "context[0].text"),
        (
            wire_text(1, wire_text(2, b"fine")) + wire_text(1, wire_text(1, b"\xc0\x80")),
            "context[1].speaker",
        ),
        (wire_text(8, b"\xed\xa0\x80"), "responder"),
        (wire_text(9, b"caf\xe9"), "topic"),
        (b"\xff\xff\xff", "GenerateResponsesRequest"),
        (b"\x0a\x7fshort", "GenerateResponsesRequest"),
        (wire_text(1, b"\x0a\x7f"), "GenerateResponsesRequest"),
    ],
)
def test_broken_messages_and_texts_are_refused_by_name(serialized, field):
    with pytest.raises(InvalidRequest) as refused:
        parse(GenerateResponsesRequest, serialized, LIMITS)
    assert refused.value.field == field


@settings(max_examples=400)
@given(st.data())
def test_a_mutated_message_is_parsed_or_refused_and_never_fails_otherwise(manifest, data):
    whole = make_request(HELLO * 3, n=5, seed=7, temperature=0.5, topic="MUSIC")
    serialized = bytearray(whole.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(serialized) - 1))
        serialized[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(serialized)))
    try:
        message = parse(GenerateResponsesRequest, bytes(serialized[:cut]), LIMITS)
        check_request(message, manifest, LIMITS)
    except InvalidRequest as refused:
        assert refused.field and json.dumps(str(refused))


def test_a_short_message_of_many_fields_that_does_not_parse_is_refused_quickly():
    many = Utterance(text="x").SerializeToString()
    serialized = wire_text(1, many) * 12_000 + wire_text(9, b"\xff")
    assert len(serialized) <= QUICK_BYTES and 12_000 > MAX_FIELDS_SEARCHED
    assert refusal(GenerateResponsesRequest, serialized).field == "GenerateResponsesRequest"


def repeated_fields(message: Descriptor) -> set[str]:
    """Name what may be repeated within a message, but for what lies within that."""
    names = {field.name for field in message.fields if field.is_repeated}
    for field in message.fields:
        if field.message_type is not None and not field.is_repeated:
            names |= repeated_fields(field.message_type)
    return names


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda kind: kind.name)
def test_every_field_that_a_request_repeats_has_a_limit_and_no_entry_repeats_more(request_type):
    assert repeated_fields(request_type) <= LIMITS.counts.keys()
    for field in request_type.fields:
        if field.is_repeated and field.message_type is not None:
            assert not any(inner.is_repeated for inner in field.message_type.fields)


@pytest.mark.parametrize(
    "kind, serialized, field",
    [
        (GenerateResponsesRequest, EMPTY_TURN * 2_000_000, "context"),
        (ScoreResponsesRequest, EMPTY_TURN * 2_000_000, "context"),
        (ScoreResponsesRequest, b"\x12\x00" * 2_000_000, "responses"),
        (VaryResponseRequest, wire_text(1, EMPTY_TURN * 2_000_000), "context"),
        # A message that stands twice is one: its turns come together.
        (VaryResponseRequest, wire_text(1, EMPTY_TURN * 64) * 2_000, "context"),
        # What is unknown is skipped, but not without end.
        (GenerateResponsesRequest, b"\x78\x00" * 2_000_000, "GenerateResponsesRequest"),
        # Nothing that protobuf skips hides what follows.
        (VaryResponseRequest, b"\x08\x00" + wire_text(1, EMPTY_TURN * 2_000_000), "context"),
        (
            GenerateResponsesRequest,
            b"\x0b\x0c" + EMPTY_TURN * 2_000_000,
            "GenerateResponsesRequest",
        ),
        (GetModelRequest, b"\x0a\x00" * 2_000_000, "GetModelRequest"),
    ],
)
def test_a_message_of_more_than_a_request_may_hold_is_refused_before_it_is_parsed(
    kind, serialized, field, monkeypatch
):
    def fail(*_):
        raise AssertionError("it was parsed")

    unparsed = type("Unparsed", (), {"DESCRIPTOR": kind.DESCRIPTOR, "ParseFromString": fail})
    looked_at = []

    def look(message):
        for each in wire.fields(message):
            looked_at.append(each)
            yield each

    monkeypatch.setattr("siserve.serving.parsing.fields", look)
    assert refusal(unparsed, serialized).field == field
    assert len(looked_at) <= MAX_FIELDS_SEARCHED + sum(LIMITS.counts.values()) + 1


@settings(max_examples=400)
@given(st.data())
def test_a_mutated_message_that_is_counted_is_parsed_as_one_that_is_not(data):
    part = make_request(HELLO * 2, n=5, topic="MUSIC").SerializeToString()
    serialized = bytearray(wire_text(1, part) * data.draw(st.integers(1, 3)))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(serialized) - 1))
        serialized[place] = data.draw(st.integers(0, 255))

    def outcome(quick_bytes: int) -> VaryResponseRequest | InvalidRequest:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("siserve.serving.parsing.QUICK_BYTES", quick_bytes)
            try:
                return parse(VaryResponseRequest, bytes(serialized), RequestLimits(max_turns=4))
            except InvalidRequest as refused:
                return refused

    counted, plain = outcome(0), outcome(1 << 20)
    if isinstance(counted, InvalidRequest) and "entries" in counted.problem:
        assert isinstance(plain, InvalidRequest) or len(plain.generate.context) > 4
    elif isinstance(counted, InvalidRequest):
        assert counted.field == "VaryResponseRequest" or str(counted) == str(plain)
    else:
        assert counted == plain and len(counted.generate.context) <= 4


def test_as_many_entries_as_the_limits_have_pass_whatever_else_a_long_message_holds():
    limits = RequestLimits(max_turns=20_000, max_text_bytes=1 << 20)
    turns = [("A", "hi")] * 20_000
    message = make_request(turns)
    serialized = message.SerializeToString() + b"\x78\x00" * 1_000  # and what it does not know
    assert len(serialized) > QUICK_BYTES
    parsed = parse(GenerateResponsesRequest, serialized, limits)
    assert len(parsed.context) == 20_000
    assert refusal(GenerateResponsesRequest, serialized + EMPTY_TURN, limits).field == "context"
    short = make_request(turns[:65]).SerializeToString()
    assert len(parse(GenerateResponsesRequest, short, LIMITS).context) == 65  # told with its count


def test_a_long_message_that_is_no_protobuf_is_refused_as_such():
    for serialized in (b"\xff" * 100_000, b"\x0b" * 100_000, EMPTY_TURN + b"\x0a\x7f" * 50_000):
        assert refusal(GenerateResponsesRequest, serialized).field == "GenerateResponsesRequest"


@pytest.mark.parametrize(
    "kind, content, field",
    [
        (GenerateResponsesRequest, {"context": [{}] * 100_000}, "context"),
        (VaryResponseRequest, {"generate": {"context": [{}] * 100_000}}, "context"),
        (ScoreResponsesRequest, {"context": [], "responses": [""] * 100_000}, "responses"),
        (ScoreResponsesRequest, {"context": [None] * 65}, "context"),
    ],
)
def test_json_of_more_than_a_request_may_hold_is_refused_before_it_is_a_message(
    kind, content, field, monkeypatch
):
    def fail(*_, **__):
        raise AssertionError("it became a message")

    monkeypatch.setattr("google.protobuf.json_format.ParseDict", fail)
    with pytest.raises(InvalidRequest, match=rf"^{field}: has \d+ entries, at most 64 are taken"):
        parse_json(kind, json.dumps(content).encode(), LIMITS)


def test_json_within_the_limits_is_the_message_under_either_name_of_a_field():
    for name in ("numSamples", "num_samples"):
        content = {
            "context": [{"speaker": "A", "text": "hi"}] * 64,
            name: 7,
            "responses": ["a"] * 64,
        }
        message = parse_json(ScoreResponsesRequest, json.dumps(content).encode(), LIMITS)
        assert (len(message.context), len(message.responses), message.num_samples) == (64, 64, 7)


def test_a_query_sets_fields_and_what_it_does_not_know_is_refused_by_name():
    assert parse_query(GetModelRequest, "").model == ""
    assert parse_query(GetModelRequest, "model=tiny%401").model == "tiny@1"
    for query in ("colour=red", "model=a&model=b", "model=%ff%fe&x"):
        with pytest.raises(InvalidRequest, match=r"^query: "):
            parse_query(GetModelRequest, query)


def test_every_request_has_a_message_that_parses():
    for request_type in REQUESTS:
        kind = message_factory.GetMessageClass(request_type)
        assert parse(kind, b"", LIMITS) == kind()
