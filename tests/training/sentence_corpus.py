"""A corpus of sentences of the tests' own, made from a seed."""

from __future__ import annotations

import random
from pathlib import Path

NOUNS = ["dog", "cat", "bird", "fish", "oven", "bank", "bond", "<unk>"]
VERBS = ["bought", "sold", "saw", "n't", "'s"]
FRAMES = ["the {n} {v} N {n}", "a {n} {v}", "{n} & co. {v} the {n} of the {n}", "the {n}"]


def make_sentence(rng: random.Random) -> str:
    frame = rng.choice(FRAMES).replace("{v}", rng.choice(VERBS))
    while "{n}" in frame:
        frame = frame.replace("{n}", rng.choice(NOUNS), 1)
    return frame


def write_sentences(folder: Path, sentences: int = 150, seed: int = 0) -> Path:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", sentences), ("valid", 24), ("test", 24)):
        lines = [f" {make_sentence(rng)} \n" for _ in range(count)]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder
