"""Reading bytes that nobody vouches for ends in a value or in a WireError, nothing else."""

from hypothesis import example, given
from hypothesis import strategies as st
from siserve.bundle.onnx_facts import read_graph_facts
from siserve.bundle.wire import WireError, fields


@given(st.binary(max_size=200))
@example(b"\x3a\x00")
@example(b"\xff" * 20)
def test_any_bytes_give_facts_or_a_wire_error(data):
    try:
        read_graph_facts(data)
    except WireError:
        pass
    else:
        assert list(fields(memoryview(data)))


def test_a_truncated_field_is_an_error():
    whole = b"\x0a\x05hello"
    assert [(number, bytes(value)) for number, value in fields(memoryview(whole))] == [
        (1, b"hello")
    ]
    for end in range(1, len(whole)):
        try:
            list(fields(memoryview(whole[:end])))
        except WireError:
            continue
        raise AssertionError(f"{whole[:end]!r} was taken for a whole message")
