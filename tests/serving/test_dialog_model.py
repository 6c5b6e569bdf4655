"""A served model, from a checked request to a job."""

import pytest
from siserve.serving.engine import EngineOptions
from siserve.serving.loading import load_model
from siserve.serving.metrics import Metrics
from siserve.serving.requests import Dialog, RequestLimits, Turn
from siserve.serving.sessions import Placement


@pytest.fixture
def model(bundle):
    observer = Metrics().engine_observer()
    placement = Placement(threads=1, precision="fp32")
    return load_model(bundle, placement, RequestLimits(), EngineOptions(), observer)


def test_turns_that_came_before_are_not_looked_up_again_unless_they_are_long(model, monkeypatch):
    encode, asked = model.context_text.encode_utterances, []

    def counted(texts):
        asked.extend(texts)
        return encode(texts)

    monkeypatch.setattr(model.context_text, "encode_utterances", counted)
    long = "well " * 200
    turns = (Turn("A", "hi !"), Turn("B", long), Turn("A", "no , Never"), Turn("B", "hi !"))
    window = [
        model._context(Dialog(turns[: stop + 1], "A")).utterances for stop in range(len(turns))
    ]
    assert asked == ["hi !", long, long, "no , Never", long]
    expected = encode([turn.text for turn in turns])
    assert window[-1][-len(turns) :] == tuple(expected)
    assert all(told[1:] == tuple(expected[: len(told) - 1]) for told in window[:-1])
