"""What holds of the engine whatever its speed: seeds do not see neighbours, draws are exact.

Used by bench_engine.py; each trial returns what it found and whether it holds.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import torch
from siserve.bench.channels import Channels
from siserve.bench.served import ServedProcess
from siserve.bench.talk import Talk
from siserve.bundle import open_bundle
from siserve.bundle.manifest import Manifest
from siserve.client.answer import make_request
from siserve.serving import noise
from siserve.serving.sessions import Sessions, load_sessions
from siserve.v1 import dialog_pb2

LEVEL = 0.001
ROWS = 2000


def seeds_hold(bundle: Path, precision: str, count: int, device: str = "cpu") -> tuple[str, bool]:
    """Ask each request alone, then all among shuffled neighbours, by 1 worker and by 2."""
    options = ["--model", str(bundle), "--precision", precision, "--device", device]
    options += ["--max-queue-rows", "100000"]
    with ServedProcess([*options, "--workers", "1"]) as one:
        requests = asyncio.run(_requests(one.address, count))
        alone = asyncio.run(_ask(one.address, requests, at_once=1))
        shared = asyncio.run(_ask(one.address, requests, at_once=48))
    with ServedProcess([*options, "--workers", "2"]) as two:
        spread = asyncio.run(_ask(two.address, requests, at_once=48))
    equal = [sum(a == b for a, b in zip(alone, other, strict=True)) for other in (shared, spread)]
    told = f"{equal[0]} of {count} bit-equal with 1 worker, {equal[1]} with 2"
    return told, min(equal) == count


async def _requests(address: str, count: int) -> list[bytes]:
    """Make requests of many sizes and options, each with a seed of its own."""
    dice = random.Random(0)
    async with Channels(address, 1, 60.0) as channels:
        talk = Talk(await channels.replies(200), seed=0)
    return [
        make_request(
            [("AB"[turn % 2], talk.utterance()) for turn in range(dice.randint(1, 6))],
            n=dice.randint(1, 8),
            seed=seed,
            temperature=dice.choice((0.0, 0.7, 1.0)),
            top_k=dice.choice((0, 0, 50)),
            top_p=dice.choice((1.0, 1.0, 0.9)),
        ).SerializeToString()
        for seed in range(count)
    ]


async def _ask(address: str, requests: list[bytes], at_once: int) -> list[bytes]:
    """Ask in any order and return what was said in the order of the requests, log_probs included.

    Whoever asks several at once also shuffles them, so that each has other neighbours.
    """
    order = list(range(len(requests)))
    if at_once > 1:
        random.Random(1).shuffle(order)
    said: dict[int, bytes] = {}
    async with Channels(address, 8, 60.0) as channels:

        async def ask(client: int) -> None:
            while order:
                number = order.pop()
                code, reply = await channels.send(requests[number], client)
                assert code == "OK", code
                told = dialog_pb2.GenerateResponsesResponse.FromString(reply)
                told.ClearField("timings")
                said[number] = told.SerializeToString(deterministic=True)

        await asyncio.gather(*(ask(client) for client in range(at_once)))
    return [said[number] for number in range(len(requests))]


def sampler_holds(
    bundle: Path, precision: str, draws: int, device: str = "cpu"
) -> tuple[str, bool]:
    """Compare draws of the first word with its distribution by chi-square.

    The distribution is the graph's own log-probability of each word when it is forced to say it,
    in float64, without the words that are never said; on CUDA, where recordings force no word, that
    of the exact decoder.
    """
    opened = open_bundle(bundle)
    sessions = load_sessions(opened, device, 2, precision)  # type: ignore[arg-type]
    steps = sessions.chunk_steps(1) if device == "cuda" else 1
    expected = draws * _first_word(sessions, opened.manifest)
    found = np.zeros(len(expected))
    for first in range(0, draws, ROWS):
        rows = np.arange(first, min(first + ROWS, draws))
        uniform = noise.uniforms(7, rows, 0, steps)
        tokens = _run(sessions, opened.manifest, uniform, np.full(uniform.shape, -1))[0]
        found += np.bincount(tokens[0], minlength=len(expected))
    frequent = expected >= 5
    observed, wanted = (np.append(a[frequent], a[~frequent].sum()) for a in (found, expected))
    chi2 = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    p = float(torch.special.gammaincc(_double(freedom / 2), _double(chi2 / 2)))
    told = f"chi-square {chi2:.0f} at {freedom} degrees of freedom, p = {p:.3f}, {draws} draws"
    return told, p > LEVEL


def _double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _first_word(sessions: Sessions, manifest: Manifest) -> np.ndarray:
    """Return the probability of each word as the first one."""
    words, tokens = np.arange(manifest.sizes.vocabulary), manifest.tokens
    log_prob = np.concatenate(
        [
            _run(sessions, manifest, np.zeros((1, len(some))), some[None])[1][0]
            for some in np.array_split(words, -(-len(words) // ROWS))
        ]
    ).astype(np.float64)
    log_prob[[tokens.pad, tokens.unk, tokens.start, tokens.dialog_start, tokens.end]] = -np.inf
    probability = np.exp(log_prob)
    return probability / probability.sum()


def _run(
    sessions: Sessions, manifest: Manifest, uniform: np.ndarray, forced: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take the first steps of rows that are all alike; return tokens and log_probs, (K, R)."""
    rows, sizes = uniform.shape[1], manifest.sizes
    rng = np.random.default_rng(0)
    told = {
        "c": np.tile(rng.standard_normal((1, sizes.context)), (rows, 1)),
        "z": np.tile(rng.standard_normal((1, sizes.latent)), (rows, 1)),
        "state": np.zeros((rows, sizes.state)),
        "uniform": uniform,
        "temperature": np.ones(rows),
        "top_p": np.ones(rows),
    }
    floats = {name: value.astype(np.float32) for name, value in told.items()}
    ids = {"token": np.full(rows, manifest.tokens.start), "top_k": np.zeros(rows, np.int64)}
    chosen, log_probs, _ = sessions.decoder.run({**floats, **ids, "forced": forced})
    return chosen, log_probs
