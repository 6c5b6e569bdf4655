"""Encode contexts: the whole graph against the conversation cache, and memory of what is kept.

    python tests/benchmarks/bench_encoder.py --bundle DIR [--turns 5] [--tokens 20] [--batch 16]

Rounds visit all variants in turn; figures are medians, ratios are medians over rounds. One thread.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from siserve.bundle import Bundle, open_bundle, write_bundle
from siserve.bundle.manifest import Description
from siserve.bundle.tensors import MANIFEST_FILE, OPTIONAL_GRAPHS
from siserve.serving.encoding import Context, ContextEncoder
from siserve.serving.sessions import load_sessions

BASELINE = "whole graph, one context"


class Talk:
    """Draws dialogs of random words, none of which was said before."""

    def __init__(self, vocabulary: int, turns: int, tokens: int) -> None:
        self._rng = np.random.default_rng(0)
        self._vocabulary, self._turns, self._tokens = vocabulary, turns, tokens

    def utterance(self, tokens: int = 0) -> tuple[int, ...]:
        words = self._rng.integers(4, self._vocabulary, (tokens or self._tokens) - 2).tolist()
        return (2, *words, 3)

    def dialog(self) -> Context:
        said = tuple(self.utterance() for _ in range(self._turns))
        return Context(said, tuple(turn % 2 for turn in range(self._turns)))

    def next_turn(self, dialog: Context) -> Context:
        return dialog._replace(utterances=(*dialog.utterances[1:], self.utterance()))


def variants(
    bundle: Bundle, whole_bundle: Bundle, talk: Talk, batch: int
) -> dict[str, tuple[ContextEncoder, Callable[[], list[Context]]]]:
    """Name what is measured: an encoder, and what draws the contexts that it is given."""
    sessions = load_sessions(bundle, "cpu", 1)
    assert sessions.dialog_encoder is not None, "export the bundle again: it lacks the two steps"
    pad = bundle.manifest.tokens.pad
    whole = ContextEncoder(load_sessions(whole_bundle, "cpu", 1), pad)
    cached = ContextEncoder(sessions, pad, 8192)
    known = [talk.dialog() for _ in range(batch)]
    cached.encode(known)
    one, many = [known[0]], list(known)

    def fresh(count: int) -> Callable[[], list[Context]]:
        return lambda: [talk.dialog() for _ in range(count)]

    def grown(dialogs: list[Context]) -> Callable[[], list[Context]]:
        def grow() -> list[Context]:
            dialogs[:] = [talk.next_turn(dialog) for dialog in dialogs]
            return dialogs

        return grow

    return {
        BASELINE: (whole, fresh(1)),
        "all turns new": (cached, fresh(1)),
        "one turn new": (cached, grown(one)),
        "all turns kept": (cached, lambda: known[:1]),
        f"whole graph, {batch} contexts": (whole, fresh(batch)),
        f"{batch} contexts, all turns new": (cached, fresh(batch)),
        f"{batch} contexts, one turn new": (cached, grown(many)),
        f"{batch} contexts, all turns kept": (cached, lambda: known),
    }


def without_steps(bundle: Bundle, target: Path) -> Bundle:
    """Copy a bundle without the two steps of its encoder."""
    about = bundle.manifest.model_dump(exclude={"files", "sha256"})
    left_out = {MANIFEST_FILE, *(graph.file for graph in OPTIONAL_GRAPHS)}
    files = {path.name: path for path in bundle.path.iterdir() if path.name not in left_out}
    write_bundle(target, files, Description.model_validate(about))
    return open_bundle(target)


def bytes_a_vector(bundle: Bundle, talk: Talk, count: int = 2000) -> float:
    """Measure what a kept vector takes, its key included."""
    sessions = load_sessions(bundle, "cpu", 1)
    encoder = ContextEncoder(sessions, bundle.manifest.tokens.pad, count)
    encoder.encode([talk.dialog()])
    tracemalloc.start()
    for _ in range(count // 20):
        encoder.encode([Context(tuple(talk.utterance() for _ in range(20)), (0,) * 20)])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept / len(encoder)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    talk = Talk(bundle.manifest.sizes.vocabulary, options.turns, options.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        whole = without_steps(bundle, Path(scratch) / "whole")
        measured = variants(bundle, whole, talk, options.batch)
    times: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(options.rounds):
        for name, (encoder, draw) in measured.items():
            contexts = draw()
            start = time.perf_counter()
            encoder.encode(contexts)
            times[name].append(1000 * (time.perf_counter() - start))
    print(
        f"{platform.machine()}, {options.turns} turns of {options.tokens} tokens, medians of "
        f"{options.rounds} rounds, random words, seed 0"
    )
    for name, each in times.items():
        count = options.batch if str(options.batch) in name else 1
        ratio = statistics.median(t / w for t, w in zip(each, times[BASELINE], strict=True))
        took = statistics.median(each)
        print(
            f"{name:32} {took:7.2f} ms, {took / count:6.2f} ms a context, "
            f"{ratio / count:5.2f} of the whole graph's"
        )
    print(f"a kept vector takes {bytes_a_vector(bundle, talk):.0f} bytes, its key included")


if __name__ == "__main__":
    main()
