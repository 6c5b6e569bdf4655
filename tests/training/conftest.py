"""A corpus of the tests' own: short dialogs of two speakers, made from a seed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

_TOPICS = {
    "PETS": ["dog", "cat", "bird", "fish", "leash", "kennel"],
    "FOOD": ["pasta", "bread", "soup", "salt", "kitchen", "oven"],
}
_FRAMES = [
    "i have a {}",
    "do you like the {}",
    "my {} is old",
    "we don't need a {} at all",
    "uh-huh",
]


def make_dialog(rng: random.Random, topic: str, turns: int) -> dict:
    speakers = ["A", "B"]
    utts = []
    for turn in range(turns):
        words = rng.choice(_FRAMES).format(rng.choice(_TOPICS[topic]))
        utts.append([speakers[turn % 2 if rng.random() < 0.7 else 0], words, ["sd"]])
    utts[1][0] = "B"
    return {
        "utts": utts,
        "topic": f'"{topic}"',
        "A": {"sex": ' "FEMALE"', "age": 31, "education": " 2"},
        "B": {"sex": "MALE", "age": 50, "education": "3"},
    }


def write_corpus(folder: Path, dialogs: int = 24, seed: int = 0) -> Path:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", dialogs), ("valid", 4), ("test", 4)):
        rows = [
            make_dialog(rng, rng.choice(sorted(_TOPICS)), rng.randint(4, 18)) for _ in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def switchboard() -> Path:
    folder = os.environ.get("SISERVE_DATA")
    if not folder or not (Path(folder) / "switchboard").is_dir():
        pytest.skip("SISERVE_DATA names no folder with switchboard/ in it")
    return Path(folder) / "switchboard"


TINY = {
    "word_embedding": 12,
    "utterance_hidden": 9,
    "context_hidden": 11,
    "topic_embedding": 3,
    "latent": 5,
    "noise": 4,
    "post_hidden": 8,
    "prior_hidden": 7,
    "decoder_hidden": 10,
    "bow_hidden": 6,
    "num_latents": 2,
    "num_aux": 3,
    "batch_size": 12,
    "run_length": 4,
    "log_every": 1,
    "valid_pairs": 20,
}
