"""The model that the package carries: whole, small, honest about itself, and worth asking."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from siserve.bundle import Bundle, open_bundle
from siserve.client.in_process import InProcess
from siserve.serving.models import embedded_bundle
from siserve.v1 import dialog_pb2

MAX_BYTES = 25_000_000
OPENINGS = (
    "do you have any pets",
    "what kind of work do you do",
    "i think taxes are way too high",
    "how is the weather where you are",
    "we went camping last summer with the kids",
    "do you watch much television",
    "my husband does most of the cooking",
    "what do you think about the schools there",
    "i used to play a lot of baseball",
    "we just bought a new car",
)


@pytest.fixture(scope="module")
def embedded() -> Bundle:
    return open_bundle(embedded_bundle())


@pytest.fixture(scope="module")
def model() -> Iterator[InProcess]:
    with InProcess() as loaded:
        yield loaded


def ask(model: InProcess, text: str, seed: int = 1, **options: Any) -> Any:
    request = dialog_pb2.GenerateResponsesRequest(seed=seed, **options)
    request.context.add(speaker="A", text=text)
    return model.send(request)


def texts(answer: Any) -> list[str]:
    return [response.text for response in answer.responses]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if not isinstance(value, str):
            yield from strings(inner) if isinstance(inner, str | dict | list) else ()


def test_it_is_whole_and_at_most_25_mb(embedded: Bundle) -> None:
    assert sum(path.stat().st_size for path in embedded.path.iterdir()) <= MAX_BYTES


def test_its_card_names_corpus_licence_command_and_limits(embedded: Bundle) -> None:
    card = (embedded.path / "README.md").read_text(encoding="utf-8")
    for named in ("Switchboard", "CC BY-NC-SA 3.0", "siserve train ", "What it is not good for"):
        assert named in card


def test_its_manifest_names_no_folder_of_the_machine_that_made_it(embedded: Bundle) -> None:
    named = strings(json.loads(embedded.manifest.model_dump_json()))
    assert [text for text in named if text.startswith(("/", "~", "C:"))] == []


def test_it_was_trained_for_eight_passes_at_the_papers_sizes(embedded: Bundle) -> None:
    told = json.loads(embedded.manifest.model_dump_json())["provenance"]
    stages = [told]
    while stages[-1].get("started_from"):
        stages.append(stages[-1]["started_from"])
    configs = [stage["config"] for stage in stages]
    assert sum(config["passes"] for config in configs) >= 8
    sizes = ("word_embedding", "utterance_hidden", "context_hidden", "latent", "decoder_hidden")
    for config in configs:
        assert config["max_steps"] == 0
        assert [config[name] for name in sizes] == [200, 300, 600, 200, 400]


@pytest.mark.parametrize(("options", "share"), [({}, 0.9), ({"temperature": 0.0}, 0.5)])
def test_five_responses_are_mostly_four_different_ones(
    options: dict[str, float], share: float, model: InProcess
) -> None:
    answers = [ask(model, text, seed, **options) for seed, text in enumerate(OPENINGS)]
    assert statistics.fmean(len(set(texts(answer))) >= 4 for answer in answers) >= share
    assert statistics.fmean(answer.distinct_1 for answer in answers) >= 0.5


def test_another_context_gets_other_responses_under_the_same_seed(model: InProcess) -> None:
    answers = {tuple(texts(ask(model, text, seed=3))) for text in OPENINGS}
    assert len(answers) == len(OPENINGS)


def test_the_same_seed_repeats_an_answer_and_another_does_not(model: InProcess) -> None:
    first, again, other = (ask(model, OPENINGS[0], seed) for seed in (7, 7, 8))
    assert texts(first) == texts(again) != texts(other)


def test_responses_hold_words_and_nothing_but_words(model: InProcess) -> None:
    for opening in OPENINGS:
        for text in texts(ask(model, opening)):
            assert text and "<" not in text and text == " ".join(text.split())
