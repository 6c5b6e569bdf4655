"""The training loop: from a configuration, a model and a corpus to checkpoints.

Its order: schedules, Algorithm 1's inner steps, one update, numbers, validation, checkpoint. Noise
and batches are functions of (seed, counters), so a resumed run repeats an unbroken one, and
several processes share the batch of one.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_model

from siserve_training.aggressive import InnerLoop
from siserve_training.checkpoint import LoopState, load_optimizers, pointed, save_checkpoint
from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Ints
from siserve_training.errors import DivergenceError
from siserve_training.models.si_cvae import SICVAE
from siserve_training.objectives.schedules import AuxRamp, BetaSchedule
from siserve_training.reporting import Reporter
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.dialog import (
    DialogData,
    LossReport,
    batch_loss,
    latent_information,
    validate,
)
from siserve_training.tasks.prepared import (
    INNER,
    TRAINING,
    StepNoise,
    prepare_batch,
    training_batches,
)

__all__ = ["FitResult", "fit", "planned_steps"]

_METERED = ("loss", "rec", "kl", "b_k", "bow", "grad_norm")


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        step: updates done.
        finished: whether all planned steps were taken; False if it was asked to stop.
    """

    step: int
    finished: bool


@dataclass
class StopFlag:
    """Set by SIGINT or SIGTERM; the loop ends after the step at hand."""

    requested: bool = False


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Turn the first SIGINT or SIGTERM into a flag; a second one acts as usual."""
    flag = StopFlag()
    previous: dict[signal.Signals, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        flag.requested = True
        for which, handler in previous.items():
            signal.signal(which, handler)

    for which in (signal.SIGINT, signal.SIGTERM):
        previous[which] = signal.signal(which, on_signal)
    try:
        yield flag
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)


def usable_precision(wanted: str) -> str:
    """Return `wanted`, or fp32 where bf16 would be emulated: it is several times slower then."""
    if wanted != "bf16":
        return wanted
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bf16" if native else "fp32"


def planned_steps(config: TrainConfig, data: DialogData) -> int:
    """Return T, the horizon of all schedules: `passes` over the training pairs."""
    return max(1, round(config.passes * len(data.train) / config.batch_size))


class Trainer:
    """A model, its optimisers and its schedules.

    Args:
        config: of the run.
        data: the corpus.
        model: to be trained.
        run: its folder.
    """

    def __init__(
        self, config: TrainConfig, data: DialogData, model: SICVAE, run: RunFolder
    ) -> None:
        self.precision = usable_precision(config.precision)
        torch.backends.cuda.matmul.allow_tf32 = config.precision != "fp32"
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if self.precision == "bf16" else "no",
        )
        self.config, self.data, self.run = config, data, run
        self.device = self.accelerator.device
        self.horizon = planned_steps(config, data)
        self.last_step = min(self.horizon, config.max_steps or self.horizon)
        self.beta = BetaSchedule(
            config.schedule,  # type: ignore[arg-type]
            self.horizon,
            config.cycles,
            config.ratio,
            config.beta_max,
        )
        self.num_aux = AuxRamp(config.num_aux, self.horizon, config.aux_horizon, config.aux_floor)
        self.state = LoopState()
        self.raw_model = model
        last = pointed(run.checkpoints, "last")
        if last is not None:
            load_model(model, last / "model.safetensors")
        self.model = self.accelerator.prepare(model)
        of_inference = {id(parameter) for parameter in model.inference_parameters()}
        groups = {
            "inference": [p for p in model.parameters() if id(p) in of_inference],
            "rest": [p for p in model.parameters() if id(p) not in of_inference],
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
            for name, parameters in groups.items()
        }
        if last is not None:
            self.state = load_optimizers(last, self.optimizers)

    def learning_rate(self, step: int) -> float:
        """Return the rate: constant, then falling linearly to 0 over the last `decay_share`."""
        left = (self.horizon - step + 1) / self.horizon
        share = self.config.decay_share
        return self.config.learning_rate * (min(1.0, left / share) if share else 1.0)

    def sampled_vocabulary(self, step: int) -> int:
        """Return the words that the sampled softmax of a step draws from, 0 for the exact one."""
        exact = step > self.horizon * (1 - self.config.exact_share)
        return 0 if exact or not self.config.frequent_words else self.data.text.size

    def step_on(
        self, number: int, step: int, purpose: int, responses: Ints, which: tuple[str, ...]
    ) -> tuple[LossReport, float]:
        """Take one gradient step of the named optimisers on a batch; return its loss and norm."""
        config, world = self.config, self.accelerator.num_processes
        batch = prepare_batch(
            self.data.train,
            responses,
            config,
            StepNoise.of(config.seed, purpose, number),
            self.num_aux.at(step),
            sample_from=self.sampled_vocabulary(step),
            hide=True,
            rank=self.accelerator.process_index,
            world=world,
        ).to(self.device)
        draws = self.model(
            batch.pairs, batch.eps_lam, batch.eps_z, config.bow_weight > 0, batch.sample
        )
        report = batch_loss(draws, config, self.beta.at(step))
        self.check(report, step, number)
        self.accelerator.backward(report.loss * batch.share)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        for name in which:
            for group in self.optimizers[name].param_groups:
                group["lr"] = self.learning_rate(step)
            self.optimizers[name].step()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        return report, float(norm)

    def check(self, report: LossReport, step: int, number: int) -> None:
        """Stop a run that has gone astray, before it spoils the weights.

        Raises:
            DivergenceError: if the loss is not finite or above `exploding_loss`.
        """
        loss = float(report.loss.detach())
        if math.isfinite(loss) and loss <= self.config.exploding_loss:
            return
        last = pointed(self.run.checkpoints, "last")
        good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise DivergenceError(
            f"loss {loss:g} at step {step}, batch {number} (rec {float(report.rec):g}, KL "
            f"{float(report.kl):g}); {good}; lower learning_rate or clip_norm and --resume"
        )

    def inner_steps(self, step: int, outer: tuple[int, Ints]) -> None:
        """Take Algorithm 1's encoder-only steps before the update of a step."""
        loop = InnerLoop(self.config.inner_steps())
        fresh = training_batches(self.data.train, self.config, self.state.inner_batches, inner=True)
        while loop.wants_step:
            reuse_outer = loop.steps is None and loop.done == 0
            number, responses = outer if reuse_outer else next(fresh)
            report, _ = self.step_on(
                number,
                step,
                TRAINING if reuse_outer else INNER,
                responses,
                ("inference",),
            )
            if not reuse_outer:
                self.state = replace(self.state, inner_batches=number + 1)
            pairs = len(responses)
            rec_and_kl = float(report.rec) + self.beta.at(step) * float(report.kl)
            if loop.took(rec_and_kl * pairs, report.tokens):
                break

    def end_of_pass(self) -> str:
        """Apply the adaptive rule's test after a pass over the pairs; return what to say of it."""
        information = latent_information(self.raw_model, self.data.valid, self.config, self.device)
        still = information >= self.state.last_mutual_information
        self.state = replace(self.state, aggressive=still, last_mutual_information=information)
        what = "goes on" if still else "ends for good"
        return f"mutual information {information:.3f} nats: aggressive mode {what}"

    def update(self, outer: tuple[int, Ints]) -> tuple[LossReport, float]:
        """Take step t: inner steps if asked for, then both sides (or the decoder's alone)."""
        step = self.state.step + 1
        inner = self.config.inner_steps()
        adaptive_now = inner is None and self.state.aggressive
        if inner or adaptive_now:
            self.inner_steps(step, outer)
        which = ("rest",) if adaptive_now else ("inference", "rest")
        result = self.step_on(outer[0], step, TRAINING, outer[1], which)
        self.state = replace(self.state, step=step)
        return result

    def save(self, names: tuple[str, ...]) -> None:
        """Write a checkpoint on the first process and move the pointers."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.run.checkpoints, self.raw_model, self.optimizers, self.state, names
            )
        self.accelerator.wait_for_everyone()

    def evaluate(self, report: Reporter) -> None:
        """Measure the valid ELBO at beta 1 and keep the best checkpoint."""
        values = validate(self.raw_model, self.data.valid, self.config, self.device)
        report.record(self.state.step, "valid", values)
        names: tuple[str, ...] = ("last",)
        if values["elbo"] > self.state.best_elbo:
            self.state = replace(self.state, best_elbo=values["elbo"])
            names = ("last", "best")
        self.save(names)


def fit(config: TrainConfig, data: DialogData, model: SICVAE, run: RunFolder) -> FitResult:
    """Train from the last checkpoint, or from the start, to the last step or a stop signal.

    Raises:
        DivergenceError: if the loss is not finite or explodes.
    """
    trainer = Trainer(config, data, model, run)
    main = trainer.accelerator.is_main_process
    model.train()
    batches = training_batches(data.train, config, trainer.state.step)
    steps_per_pass = -(-len(data.train) // config.batch_size)
    meter = Meter()
    reporter = Reporter(run, trainer.last_step, trainer.state.step, main)
    with stop_signals() as stop, reporter as report:
        if trainer.precision != config.precision:
            report.say(f"note: no {config.precision} arithmetic here; training in fp32")
        while trainer.state.step < trainer.last_step and not stop.requested:
            loss, norm = trainer.update(next(batches))
            step = trainer.state.step
            meter.add(loss, norm)
            report.advance(step)
            if step % config.log_every == 0 or step == trainer.last_step:
                schedule = {"beta": trainer.beta.at(step), "K": float(trainer.num_aux.at(step))}
                rate = {"learning_rate": trainer.learning_rate(step)}
                report.record(step, "train", {**meter.means(), **schedule, **rate})
            if step % steps_per_pass == 0 and config.inner_steps() is None:
                if trainer.state.aggressive:
                    report.say(trainer.end_of_pass())
            if step % config.eval_every == 0 or step == trainer.last_step:
                trainer.evaluate(report)
            elif step % config.save_every == 0:
                trainer.save(("last",))
        if stop.requested and trainer.state.step < trainer.last_step:
            trainer.save(("last",))
    return FitResult(trainer.state.step, trainer.state.step >= trainer.last_step)


class Meter:
    """Means of the numbers since they were last asked for, and tokens per second."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything and start the clock."""
        self.sums = dict.fromkeys(_METERED, 0.0)
        self.steps = 0
        self.tokens = 0
        self.start = time.monotonic()

    def add(self, report: LossReport, norm: float) -> None:
        """Take in one step."""
        parts = (report.loss.detach(), report.rec, report.kl, report.gain, report.bow)
        values = [*(float(part) for part in parts), norm]
        for name, value in zip(_METERED, values, strict=True):
            self.sums[name] += value
        self.steps += 1
        self.tokens += report.tokens

    def means(self) -> dict[str, float]:
        """Return the means and the rate, and start anew."""
        values = {name: value / max(1, self.steps) for name, value in self.sums.items()}
        values["tokens_per_s"] = self.tokens / max(1e-9, time.monotonic() - self.start)
        self.clear()
        return values
