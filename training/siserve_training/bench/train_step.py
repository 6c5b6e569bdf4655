"""Time of a training step at the paper's sizes: our way against the way of research code.

Both take the same step (forward, backward, clipping, Adam) on the same windows of the Switchboard
corpus, from the same weights and noise: 30 pairs, J = 5, K = 30, exact softmax, no bag of words.
Ours encodes each distinct utterance of a batch once and shows the output layer real tokens only;
research_way.py says what the other does. First both losses must agree to rounding; then the two
take turns, who begins changing each time, and a round's ratio is of the times of its own steps.

    python -m siserve_training.bench.train_step --data DIR [--rounds 5] [--batches 4]

prints one JSON object; `siserve bench train` shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from siserve.bundle.errors import SiserveError
from torch import Tensor, nn

from siserve_training.bench.research_way import PaddedBatch, ResearchSICVAE
from siserve_training.data.batches import BatchOrder, DialogBatch, collate
from siserve_training.data.corpus import DialogCorpus
from siserve_training.data.pairs import PairSet, build_vocabulary, find_features
from siserve_training.models.cvae import CVAE, CVAEConfig
from siserve_training.models.draws import Noise
from siserve_training.objectives.surrogate import latent_bound

__all__ = ["main"]

NUM_LATENTS, NUM_AUX = 5, 30  # J, K
RUN_LENGTH = 5
CLIP_NORM, LEARNING_RATE = 5.0, 1e-3
TOLERANCE = 1e-5  # relative, of two losses in fp32
TOLERANCE_BF16 = 1e-2
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, Arm


@dataclass(frozen=True)
class Windows:
    """One batch in both forms, and the noise of its draws."""

    shared: DialogBatch
    padded: PaddedBatch
    noise: Noise


@dataclass(frozen=True)
class Contender:
    """A model and what one training step does to it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any], Tensor]

    @classmethod
    def of(cls, model: nn.Module, loss: Callable[[Any], Tensor]) -> Contender:
        """Give a model the optimiser that training uses."""
        return cls(model, torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True), loss)

    def seconds(self, batch: Any) -> float:
        """Take one step and time it."""
        start = time.perf_counter()
        self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


@dataclass(frozen=True)
class Result:
    """What was measured of our way in one precision, against the research way in fp32.

    Attributes:
        precision: of our way.
        loss_error: largest relative difference of the two losses over the batches.
        pairs_per_s: ours, median over rounds.
        research_pairs_per_s: theirs, median over rounds.
        ratio: median over rounds of their time over ours.
        ratios: of every round.
    """

    precision: str
    loss_error: float
    pairs_per_s: float
    research_pairs_per_s: float
    ratio: float
    ratios: list[float]


def our_loss(model: CVAE, windows: Windows, bf16: bool) -> Tensor:
    """Return -L_{1,K}, the mean over the batch in nats, as training computes it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        draws = model(windows.shared, windows.noise)
    parts = latent_bound(draws.z, draws.own, draws.posterior, draws.prior, draws.log_p_x)
    return -parts.bound.mean()


def read_corpus(folder: Path) -> tuple[PairSet, CVAEConfig]:
    """Make a corpus's training pairs, and the paper's sizes with its vocabulary and topics."""
    dialogs, _ = DialogCorpus(folder).read("train")
    text, features = build_vocabulary(dialogs), find_features(dialogs)
    sizes = CVAEConfig(
        vocabulary=text.size, topics=len(features.topics), profile=features.profile, post_hidden=0
    )
    return PairSet.from_dialogs(dialogs, text, features), sizes


def draw_windows(pairs: PairSet, sizes: CVAEConfig, options: argparse.Namespace) -> list[Windows]:
    """Take the first batches of training's own order, with noise of the same seed."""
    generator = torch.Generator().manual_seed(options.seed)
    order = BatchOrder(pairs, options.batch_size, RUN_LENGTH, options.seed)
    shapes = ((NUM_LATENTS + NUM_AUX, sizes.noise), (NUM_LATENTS, sizes.latent), (NUM_AUX + 1, 0))
    return [
        Windows(
            collate(pairs, responses),
            PaddedBatch.of(pairs, responses),
            Noise(*(torch.randn(len(responses), *shape, generator=generator) for shape in shapes)),
        )
        for responses in islice(order.batches(), options.batches)
    ]


def measure(
    windows: list[Windows], sizes: CVAEConfig, options: argparse.Namespace, bf16: bool
) -> Result:
    """Check that the losses agree, then let both ways take turns.

    Raises:
        SiserveError: if a loss differs by more than rounding.
    """
    torch.manual_seed(options.seed)
    model = CVAE(sizes)
    research = ResearchSICVAE(model)
    ours = Contender.of(model, lambda w: our_loss(model, w, bf16))
    theirs = Contender.of(research, lambda w: research(w.padded, w.noise.eps_lam, w.noise.eps_z))
    error = largest_loss_error(ours, theirs, windows)
    tolerance = TOLERANCE_BF16 if bf16 else TOLERANCE
    if error > tolerance:
        raise SiserveError(f"losses differ by {error:.1e} relative, expected at most {tolerance}")
    for batch in windows:  # warm-up: both meet every shape once
        ours.seconds(batch)
        theirs.seconds(batch)
    pairs = sum(len(batch.shared) for batch in windows)
    rounds = [one_round(ours, theirs, windows, number) for number in range(options.rounds)]
    ratios = [their_time / our_time for our_time, their_time in rounds]
    return Result(
        precision="bf16" if bf16 else "fp32",
        loss_error=error,
        pairs_per_s=statistics.median(pairs / our_time for our_time, _ in rounds),
        research_pairs_per_s=statistics.median(pairs / their_time for _, their_time in rounds),
        ratio=statistics.median(ratios),
        ratios=ratios,
    )


@torch.no_grad()
def largest_loss_error(ours: Contender, theirs: Contender, windows: list[Windows]) -> float:
    """Return the largest relative difference of the two losses."""
    losses = [(float(ours.loss(batch)), float(theirs.loss(batch))) for batch in windows]
    return max(abs(own - other) / abs(other) for own, other in losses)


def one_round(
    ours: Contender, theirs: Contender, windows: Sequence[Any], number: int
) -> tuple[float, float]:
    """Take a step of each way on every batch; return our seconds and theirs."""
    total = {id(ours): 0.0, id(theirs): 0.0}
    for place, batch in enumerate(windows):
        first, second = (ours, theirs) if (number + place) % 2 == 0 else (theirs, ours)
        for way in (first, second):
            total[id(way)] += way.seconds(batch)
    return total[id(ours)], total[id(theirs)]


def has_native_bf16() -> bool:
    """Whether this CPU multiplies in bf16; without it, bf16 is emulated and slow."""
    try:
        return not BF16_FLAGS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def describe(windows: list[Windows], options: argparse.Namespace) -> dict[str, str]:
    """Say on what the numbers were measured."""
    pairs = sum(len(batch.shared) for batch in windows)
    distinct = sum(len(batch.shared.utterances) for batch in windows)
    padded = sum(batch.padded.context[:, :, 0].numel() + len(batch.shared) for batch in windows)
    real = sum(int(batch.shared.response_lengths.sum()) for batch in windows)
    computed = sum(batch.padded.response[:, 1:].numel() for batch in windows)
    return {
        "threads": str(torch.get_num_threads()),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set (the library's default)"),
        "torch": torch.__version__,
        "corpus": f"{options.data.name}, training split",
        "windows": f"{pairs} in {len(windows)} batches of {options.batch_size}, runs of up to "
        f"{RUN_LENGTH} consecutive ones, seed {options.seed}",
        "step": f"J = {NUM_LATENTS}, K = {NUM_AUX}, exact softmax, no bag of words; forward, "
        "backward, clipping, Adam",
        "utterances encoded": f"{distinct} our way, {padded} of up to 40 tokens the research way",
        "output layer": f"{real * NUM_LATENTS} tokens our way, {computed * NUM_LATENTS} with "
        "padding the research way",
    }


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--batch-size", type=int, default=30, help="pairs of a batch")
    parser.add_argument("--batches", type=int, default=4, help="batches of a round")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and order")
    return parser.parse_args()


def main() -> int:
    """Measure and print one JSON object; return the exit code."""
    options = parse_options()
    try:
        pairs, sizes = read_corpus(options.data)
        windows = draw_windows(pairs, sizes, options)
        results = [measure(windows, sizes, options, bf16=False)]
        left_out = []
        if has_native_bf16():
            results.append(measure(windows, sizes, options, bf16=True))
        else:
            left_out = ["bf16: this processor has no bf16 arithmetic"]
    except SiserveError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    told = {"about": describe(windows, options), "results": [asdict(each) for each in results]}
    print(json.dumps({**told, "left_out": left_out}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
