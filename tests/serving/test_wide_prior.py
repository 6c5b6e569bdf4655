"""A bundle whose prior takes more noise than z has numbers, and that knows no densities."""

import pytest
from siserve.client.answer import make_request
from siserve.client.in_process import InProcess
from two_sided import two_sided_bundle

HELLO = [("A", "hello there")]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return two_sided_bundle(tmp_path_factory.mktemp("wide") / "bundle")


def test_it_answers_and_repeats_its_answer(wide):
    with InProcess(wide) as local:
        first = local.send(make_request(HELLO, n=6, seed=3))
        assert len(first.responses) == 6 and first.model == "two-sided@1"
        assert local.send(make_request(HELLO, n=6, seed=3)).responses == first.responses


def test_diversity_asks_for_no_densities(wide):
    with InProcess(wide) as local:
        answer = local.send(make_request(HELLO, n=6, seed=3, diversity=0.9))
        assert len({reply.text for reply in answer.responses}) == 6
