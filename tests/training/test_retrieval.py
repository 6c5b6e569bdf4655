"""R@1: whether a response is likelier under its own context, on systems that are known."""

from __future__ import annotations

import numpy as np
import pytest
from siserve_training.data.corpus import Dialog, Utterance
from siserve_training.data.pairs import Features, PairSet, build_vocabulary
from siserve_training.evaluation.likelihood import retrieval
from siserve_training.evaluation.system import ModelSystem
from siserve_training.tasks.dialog import load_dialog_data

from .plain_systems import Copying, Deaf, OfDialogs
from .small_runs import random_model, small_config

CONFIG = small_config()


def copied_pairs(dialogs=30, turns=7):
    """Dialogs in which each utterance is said by one speaker, then by the other."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(dialogs):
        said = [" ".join(f"w{n}" for n in rng.integers(0, 90, 6)) for _ in range(turns)]
        twice = [Utterance("AB"[i % 2], said[i // 2]) for i in range(2 * turns)]
        made.append(Dialog(tuple(twice), None, {}))
    text = build_vocabulary(made)
    return PairSet.from_dialogs(made, text, Features())


@pytest.fixture(scope="module")
def copied():
    """Pairs of which every second one is a copy."""
    return copied_pairs()


def of_copies(pairs, found):
    """The parts of the pairs whose response repeats the last utterance."""
    texts = pairs.text_of
    is_copy = [texts[r] == texts[r - 1] for r in pairs.responses]
    lengths = [-len(pairs.texts[texts[r]]) for r in pairs.responses]
    assert len(set(lengths)) == 1  # so the order of the batches is that of the pairs
    return np.array(found.is_first_10)[is_copy], np.array(found.is_first_20)[is_copy]


def test_a_system_that_copies_from_the_context_finds_every_context(copied):
    found = retrieval(Copying(), copied, CONFIG, 0, 3)
    first_10, first_20 = of_copies(copied, found)
    assert first_10.mean() == first_20.mean() == 1
    assert len(found.is_first_10) == len(copied) and found.samples == 3


def test_where_the_context_does_not_matter_ties_count_in_parts(copied):
    found = retrieval(Deaf(), copied, CONFIG, 0, 3)
    assert found.is_first_10 == pytest.approx([0.1] * len(copied))
    assert (found.recall_10, found.recall_20) == pytest.approx((0.1, 0.05))


def test_rivals_come_from_other_dialogs(copied):
    found = retrieval(OfDialogs(), copied, CONFIG, 0, 1)
    assert found.recall_10 == found.recall_20 == 1


def test_a_few_pairs_of_two_dialogs_are_enough(copied):
    found = retrieval(Copying(), copied, CONFIG, 3, 2)
    assert len(found.is_first_10) == 3


def test_one_seed_draws_the_same_rivals_and_another_draws_others(copied):
    first, again = (retrieval(Copying(), copied, CONFIG, 0, 1) for _ in range(2))
    assert first == again
    assert first != retrieval(Copying(), copied, small_config(seed=1), 0, 1)


def test_a_deterministic_system_needs_one_sample(copied):
    system = Copying()
    system.is_deterministic = True
    assert retrieval(system, copied, CONFIG, 4, 50).samples == 1


def test_a_decoder_without_context_leaves_a_model_at_chance(corpus):
    """The prior's latents may still tell the context; here both ways are cut."""

    def cut(model):
        model.decoder.init.weight[:, : model.config.condition] = 0
        model.prior_net.hidden.weight[:, : model.config.condition] = 0

    data = load_dialog_data(corpus, CONFIG, skip_bad_lines=False)
    model = random_model(CONFIG, data, cut)
    found = retrieval(ModelSystem(model, data.text.tokens), data.valid, CONFIG, 0, 3)
    assert found.is_first_10 == pytest.approx([0.1] * len(data.valid))
    assert (found.recall_10, found.recall_20) == pytest.approx((0.1, 0.05))
