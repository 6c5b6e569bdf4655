"""R@1 on corpora whose answer is known: a response that copies the context, and a random one."""

from __future__ import annotations

import json
import random

import pytest
from siserve_training.evaluation.likelihood import retrieval
from siserve_training.evaluation.measure import open_subject
from siserve_training.training import start_run

from .small_runs import small_config

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "o")]
SIZES = {
    "word_embedding": 24,
    "utterance_hidden": 32,
    "context_hidden": 48,
    "decoder_hidden": 64,
    "post_hidden": 32,
    "prior_hidden": 32,
    "latent": 8,
    "context_utterances": 2,
    "num_latents": 1,
    "batch_size": 64,
    "run_length": 5,
    "learning_rate": 4e-3,
    "decay_share": 0.3,
    "eval_every": 100_000,
    "save_every": 100_000,
    "log_every": 50,
}


def write_corpus(folder, says, turns):
    """Dialogs of A and B; `says` makes the next utterance of the last one, None at the start."""
    dice = random.Random(0)
    folder.mkdir()
    for split, count in (("train", 900), ("valid", 4), ("test", 40)):
        lines = []
        for _ in range(count):
            said = None
            utts = []
            for turn in range(turns[split]):
                said = says(dice, said)
                utts.append(["AB"[turn % 2], said])
            lines.append(json.dumps({"utts": utts}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def new(dice, said=None):
    return " ".join(dice.sample(WORDS, 2))


def copy(dice, said):
    return said or new(dice)


def recall(corpus, out, passes):
    start_run(out, corpus, small_config(**SIZES, passes=passes))
    subject = open_subject(out, corpus, "test")
    return retrieval(subject.system, subject.pairs, subject.config, 0, 4)


@pytest.mark.slow
def test_a_model_of_copied_responses_finds_their_contexts(tmp_path):
    """The first response of a dialog copies nothing; it is 1 of 39."""
    corpus = write_corpus(tmp_path / "corpus", copy, {"train": 6, "valid": 6, "test": 40})
    found = recall(corpus, tmp_path / "run", 12.0)
    assert found.recall_10 > 0.95


@pytest.mark.slow
def test_a_model_of_random_responses_stays_at_chance(tmp_path):
    """Of 1,560 responses; 0.03 is four standard deviations."""
    corpus = write_corpus(tmp_path / "corpus", new, {"train": 6, "valid": 6, "test": 40})
    found = recall(corpus, tmp_path / "run", 2.0)
    assert len(found.is_first_10) == 40 * 39
    assert found.recall_10 == pytest.approx(0.1, abs=0.03)
    assert found.recall_20 == pytest.approx(0.05, abs=0.03)
