"""Training tokens per second of sentence VAEs at the paper's sizes: ours, and the lagging way.

Both take the same step (forward, backward, clipping, Adam) on the same batches of 32 sentences of
one length of PTB, from the same weights and noise, with the exact softmax over all words. The
lagging way (lagging_way.py) decodes a sentence's latents one after another in float32. First both
losses must agree to rounding, dropout off; then the two take turns, who begins changing each time,
and a round's ratio is of the times of its own steps. Last, a step of SA-VAE against one of VAE.

    python tests/benchmarks/bench_lm_train.py --data DIR [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from siserve_training.bench.train_step import Contender, has_native_bf16, one_round
from siserve_training.config import TrainConfig, preset_values
from siserve_training.errors import CorpusError
from siserve_training.methods import load_method
from siserve_training.models.language import LanguageModel
from siserve_training.objectives.schedules import Moment
from siserve_training.reproduce.machine import machine
from siserve_training.tasks.lm import (
    TASK,
    SentenceData,
    build_language_model,
    load_sentence_data,
)
from siserve_training.tasks.prepared import TRAINING, PreparedBatch, StepNoise
from siserve_training.tasks.task import BatchWish
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from lagging_way import LaggingVAE

TOLERANCE = 1e-5  # relative, of two losses in fp32
TOLERANCE_BF16 = 1e-2
#: What takes turns: the method, and J and K that its preset has.
METHODS = {"vae": "J = 1", "si-vae": "J = 5, K = 50"}


@dataclass(frozen=True)
class Result:
    """Our way in one precision against another one.

    Attributes:
        what: method, draws and precision of ours.
        against: what it is compared with.
        loss_error: largest relative difference of the two losses; None where they differ by design.
        tokens_per_s: ours, median over rounds.
        their_tokens_per_s: theirs, median over rounds.
        ratio: median over rounds of their time over ours.
        ratios: of every round.
    """

    what: str
    against: str
    loss_error: float | None
    tokens_per_s: float
    their_tokens_per_s: float
    ratio: float
    ratios: list[float]


def config_of(method: str) -> TrainConfig:
    """Return the paper's sizes."""
    return TrainConfig.from_values(preset_values(f"lm-{method}"))


def draw_batches(
    config: TrainConfig, data: SentenceData, model: LanguageModel, count: int
) -> list[PreparedBatch]:
    """Take the first batches of training's own order, with training's own noise at the last K."""
    batches = []
    for number, items in islice(TASK.training_batches(config, data, 0, False), count):
        noise = StepNoise.of(config.seed, TRAINING, number)
        wish = BatchWish(model.config.widths, noise, config.num_aux, 0)
        batches.append(TASK.prepare(config, data, items, wish))
    return batches


def our_way(config: TrainConfig, model: LanguageModel, bf16: bool) -> Contender:
    """Return our step: the loss of training at beta 1."""
    method, moment = load_method(config.method), Moment(1, 1, 1, 1.0, config.num_aux)

    def loss(batch: PreparedBatch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return method.loss(model, batch, config, moment, "bound").loss

    return Contender.of(model, loss)


def lagging_way(model: LanguageModel) -> Contender:
    """Return the other step, from the same weights."""
    plain = LaggingVAE(model)
    return Contender.of(
        plain, lambda batch: plain(batch.pairs.ids, batch.noise.eps_lam, batch.noise.eps_z)
    )


def tokens_of(batches: list[PreparedBatch]) -> int:
    """Count words and end marks, each once however many latents decode it."""
    return sum(int(batch.pairs.response_lengths.sum()) for batch in batches)


@torch.no_grad()
def largest_loss_error(ours: Contender, theirs: Contender, batches: list[PreparedBatch]) -> float:
    """Return the largest relative difference of the two losses, dropout off."""
    for way in (ours, theirs):
        way.model.train(False)
    losses = [(float(ours.loss(batch)), float(theirs.loss(batch))) for batch in batches]
    for way in (ours, theirs):
        way.model.train()
    return max(abs(own - other) / abs(other) for own, other in losses)


def take_turns(
    ours: Contender, theirs: Contender, batches: list[PreparedBatch], rounds: int
) -> list[tuple[float, float]]:
    """Time a step of each way on every batch, round by round, after a warm-up."""
    one_round(ours, theirs, batches[:1], 0)
    return [one_round(ours, theirs, batches, number) for number in range(rounds)]


def result(
    what: str,
    against: str,
    error: float | None,
    batches: list[PreparedBatch],
    times: list[tuple[float, float]],
) -> Result:
    """Sum rounds up."""
    tokens, ratios = tokens_of(batches), [theirs / ours for ours, theirs in times]
    return Result(
        what,
        against,
        error,
        statistics.median(tokens / ours for ours, _ in times),
        statistics.median(tokens / theirs for _, theirs in times),
        statistics.median(ratios),
        ratios,
    )


def measure(method: str, data: SentenceData, options: argparse.Namespace, bf16: bool) -> Result:
    """Check that the losses agree, then let both ways take turns.

    Raises:
        AssertionError: if a loss differs by more than rounding.
    """
    config = config_of(method)
    model = build_language_model(config, data)
    batches = draw_batches(config, data, model, options.batches)
    ours, theirs = our_way(config, model, bf16), lagging_way(model)
    error = largest_loss_error(ours, theirs, batches)
    tolerance = TOLERANCE_BF16 if bf16 else TOLERANCE
    assert error <= tolerance, f"losses differ by {error:.1e} relative, more than {tolerance:.0e}"
    times = take_turns(ours, theirs, batches, options.rounds)
    precision = "bf16" if bf16 else "fp32"
    what = f"{method}, {METHODS[method]}, {precision}"
    return result(what, "the lagging way, fp32", error, batches, times)


def measure_refinement(data: SentenceData, options: argparse.Namespace, bf16: bool) -> Result:
    """Let a step of SA-VAE and one of VAE take turns, both ours."""
    ways = []
    for method in ("sa-vae", "vae"):
        config = config_of(method)
        model = build_language_model(config, data).train()
        ways.append((our_way(config, model, bf16), config, model))
    (refining, config, model), (plain, plain_config, plain_model) = ways
    batches = draw_batches(config, data, model, options.batches)
    plain_batches = draw_batches(plain_config, data, plain_model, options.batches)
    noise_of = {id(batch): other for batch, other in zip(batches, plain_batches, strict=True)}
    other = Contender(plain.model, plain.optimizer, lambda batch: plain.loss(noise_of[id(batch)]))
    times = take_turns(refining, other, batches, max(1, options.rounds // 2))
    precision = "bf16" if bf16 else "fp32"
    what = f"sa-vae, {config.num_refine_steps} steps, {precision}"
    return result(what, f"our vae, {precision}", None, batches, times)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    corpora = os.environ.get("SISERVE_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(corpora) / "ptb" if corpora else None,
        help="folder of the corpus; SISERVE_DATA/ptb by default",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--batches", type=int, default=4, help="batches of a round")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--only", default="", help="vae, si-vae or sa-vae")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse_options()
    if options.data is None:
        print("bench_lm_train: no corpus: pass --data DIR or set SISERVE_DATA", file=sys.stderr)
        sys.exit(2)
    try:
        data = load_sentence_data(options.data, config_of("vae"), skip_bad_lines=False)
    except CorpusError as error:
        print(f"bench_lm_train: {error}", file=sys.stderr)
        sys.exit(2)
    precisions = [False, True] if has_native_bf16() else [False]
    results = []
    for method in METHODS:
        if options.only in ("", method):
            results += [measure(method, data, options, bf16) for bf16 in precisions]
    if options.only in ("", "sa-vae"):
        results.append(measure_refinement(data, options, precisions[-1]))
    facts = {
        "machine": "{processor}, {cores} cores".format(**machine()),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "corpus": f"{options.data.name}, training split",
        "step": f"{options.batches} batches of 32 sentences of one length, exact softmax over "
        f"{data.text.size} words, dropout; forward, backward, clipping, Adam",
    }
    if options.json:
        print(json.dumps({**facts, "results": [asdict(found) for found in results]}, indent=2))
        return
    for name, value in facts.items():
        print(f"{name}: {value}")
    for found in results:
        print(line_of(found))


def line_of(found: Result) -> str:
    """Write a result as one line."""
    each = ", ".join(f"{ratio:.3g}" for ratio in found.ratios)
    agreed = f"; losses differ by {found.loss_error:.1e} relative" if found.loss_error else ""
    return (
        f"{found.what}: {found.tokens_per_s:.0f} tokens/s, {found.against} "
        f"{found.their_tokens_per_s:.0f}, their time over ours {found.ratio:.3g} (median of "
        f"{each}){agreed}"
    )


if __name__ == "__main__":
    main()
