"""The training loop: from a configuration, a model and a corpus to checkpoints.

Its order: schedules, Algorithm 1's inner steps, one update, numbers, validation, checkpoint. Noise
and batches are functions of (seed, counters), so a resumed run repeats an unbroken one, and
several processes share the batch of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors.torch import load_model

from siserve_training.aggressive import InnerLoop
from siserve_training.checkpoint import LoopState, load_optimizers, pointed, save_checkpoint
from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Ints
from siserve_training.errors import ConfigError, DivergenceError
from siserve_training.meter import Meter, merged
from siserve_training.methods import load_method
from siserve_training.methods.method import LossReport, Update
from siserve_training.models.text_model import TextModel
from siserve_training.objectives.schedules import AuxRamp, BetaSchedule, Moment
from siserve_training.reporting import Reporter
from siserve_training.run_folder import RunFolder
from siserve_training.slow_groups import rate_factor, slow_down
from siserve_training.stopping import stop_signals
from siserve_training.tasks.prepared import INNER, TRAINING, StepNoise
from siserve_training.tasks.task import BatchWish, TaskData, load_task
from siserve_training.together import any_process, over_processes

__all__ = ["FitResult", "fit", "planned_steps"]


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        step: updates done.
        finished: whether all planned steps were taken; False if it was asked to stop.
    """

    step: int
    finished: bool


def usable_precision(wanted: str) -> str:
    """Return `wanted`, or fp32 where bf16 would be emulated: it is several times slower then."""
    if wanted != "bf16":
        return wanted
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bf16" if native else "fp32"


def planned_steps(config: TrainConfig, data: TaskData) -> int:
    """Return T, the horizon of all schedules: `passes` over the training pairs."""
    return max(1, round(config.passes * load_task(config.task).batches_per_pass(config, data)))


def steps_per_pass(config: TrainConfig, data: TaskData) -> int:
    """Return the steps of one pass, the last and shorter one included."""
    return math.ceil(load_task(config.task).batches_per_pass(config, data))


class Trainer:
    """A model, its optimisers and its schedules.

    Args:
        config: of the run.
        data: the corpus.
        model: to be trained.
        run: its folder.
    """

    def __init__(
        self, config: TrainConfig, data: TaskData, model: TextModel, run: RunFolder
    ) -> None:
        self.precision = usable_precision(config.precision)
        torch.backends.cuda.matmul.allow_tf32 = config.precision != "fp32"
        self.config, self.data, self.run = config, data, run
        self.method = load_method(config.method)
        self.task = load_task(config.task)
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
        self.per_pass = steps_per_pass(config, data)
        self.accelerator = self.make_accelerator()
        self.device = self.accelerator.device
        self.state = LoopState()
        self.raw_model = model
        last = pointed(run.checkpoints, "last")
        if last is not None:
            load_model(model, last / "model.safetensors")
        self.model = self.accelerator.prepare(model)
        self.optimizers = self.method.optimizers(config, model)
        slow_down(self.optimizers, model.pretrained_parameters(), config.context_encoder_rate)
        if config.inner_steps() != 0 and "inference" not in self.optimizers:
            raise ConfigError(f"method {config.method} has no encoder-only step: aggressive=off")
        if last is not None:
            self.state = load_optimizers(last, self.optimizers)
        self.fresh = self.task.training_batches(config, data, self.state.inner_batches, True)

    def make_accelerator(self) -> Accelerator:
        """Find devices and processes."""
        parts = {update.part for update in self.method.updates(self.config, self.moment(1))}
        # a loss that is one of several leaves parameters without a gradient
        some_unused = DistributedDataParallelKwargs(find_unused_parameters=len(parts) > 1)
        return Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if self.precision == "bf16" else "no",
            kwargs_handlers=[some_unused],
        )

    def sampled_vocabulary(self, step: int) -> int:
        """Return the words that the sampled softmax of a step draws from, 0 for the exact one."""
        exact = step > self.horizon * (1 - self.config.exact_share)
        return 0 if exact or not self.config.frequent_words else self.data.text.size

    def moment(self, step: int) -> Moment:
        """Return where in training a step stands."""
        beta, num_aux = self.beta.at(step), self.num_aux.at(step)
        return Moment(step, self.horizon, self.per_pass, beta, num_aux)

    def step_on(
        self, number: int, step: int, purpose: int, responses: Ints, update: Update
    ) -> tuple[LossReport, float]:
        """Take one gradient step of an update on a batch; return its loss and gradient norm."""
        config, moment = self.config, self.moment(step)
        wish = BatchWish(
            self.raw_model.config.widths,
            StepNoise.of(config.seed, purpose, number),
            moment.num_aux,
            self.sampled_vocabulary(step),
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        batch = self.task.prepare(config, self.data, responses, wish).to(self.device)
        own = self.method.loss(self.model, batch, config, moment, update.part)
        report = over_processes(self.accelerator, own, batch.share)
        self.check(report, step, number)
        self.accelerator.backward(own.loss * batch.share)
        norm = self.method.clip(self.raw_model, config, update.part)
        for name in update.optimizers:
            for group in self.optimizers[name].param_groups:
                rate = self.method.learning_rate(config, name, moment)
                group["lr"] = rate * rate_factor(group)
            self.optimizers[name].step()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        return report, norm

    def check(self, report: LossReport, step: int, number: int) -> None:
        """Stop a run that has gone astray, before it spoils the weights.

        Raises:
            DivergenceError: if the loss is not finite or above `exploding_loss`.
        """
        loss = float(report.loss.detach())
        if math.isfinite(loss) and loss <= self.config.exploding_loss:
            return
        last = pointed(self.run.checkpoints, "last")
        parts = ", ".join(f"{name} {float(value):g}" for name, value in report.parts.items())
        good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise DivergenceError(
            f"loss {loss:g} at step {step}, batch {number} ({parts}); {good}; "
            "lower learning_rate or clip_norm and --resume"
        )

    def inner_steps(self, step: int, outer: tuple[int, Ints]) -> None:
        """Take Algorithm 1's encoder-only steps before the update of a step."""
        loop = InnerLoop(self.config.inner_steps())
        while loop.wants_step:
            reuse_outer = loop.steps is None and loop.done == 0
            number, responses = outer if reuse_outer else next(self.fresh)
            report, _ = self.step_on(
                number,
                step,
                TRAINING if reuse_outer else INNER,
                responses,
                Update("bound", ("inference",)),
            )
            if not reuse_outer:
                self.state = replace(self.state, inner_batches=number + 1)
            pairs = len(responses)
            rec, kl = (float(report.parts[name]) for name in ("rec", "kl"))
            rec_and_kl = rec + self.beta.at(step) * kl
            if loop.took(rec_and_kl * pairs, report.tokens):
                break

    def end_of_pass(self) -> str:
        """Apply the adaptive rule's test after a pass over the pairs; return what to say of it."""
        information = self.task.latent_information(
            self.raw_model, self.config, self.data, self.device
        )
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
        updates = self.method.updates(self.config, self.moment(step))
        if adaptive_now:
            updates = (Update("bound", ("rest",)),)
        results = [self.take(update, step, outer) for update in updates]
        self.state = replace(self.state, step=step)
        return merged([report for report, _ in results]), max(norm for _, norm in results)

    def take(self, update: Update, step: int, outer: tuple[int, Ints]) -> tuple[LossReport, float]:
        """Take one update on the step's batch, or on a fresh one if it asks for that."""
        if not update.fresh_batch:
            return self.step_on(outer[0], step, TRAINING, outer[1], update)
        number, responses = next(self.fresh)
        self.state = replace(self.state, inner_batches=number + 1)
        return self.step_on(number, step, INNER, responses, update)

    def settings(self, step: int) -> dict[str, float]:
        """Return what the schedules say at a step."""
        moment = self.moment(step)
        first = next(iter(self.optimizers))
        rate = self.method.learning_rate(self.config, first, moment)
        return {"beta": moment.beta, "K": float(moment.num_aux), "learning_rate": rate}

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
        values = self.task.validate(self.raw_model, self.config, self.data, self.device)
        report.record(self.state.step, "valid", values)
        names: tuple[str, ...] = ("last",)
        if values["score"] > self.state.best_score:
            self.state = replace(self.state, best_score=values["score"])
            names = ("last", "best")
        self.save(names)


def fit(config: TrainConfig, data: TaskData, model: TextModel, run: RunFolder) -> FitResult:
    """Train from the last checkpoint, or from the start, to the last step or a stop signal.

    Raises:
        DivergenceError: if the loss is not finite or explodes.
    """
    trainer = Trainer(config, data, model, run)
    main = trainer.accelerator.is_main_process
    model.train()
    batches = trainer.task.training_batches(config, data, trainer.state.step, False)
    meter = Meter()
    reporter = Reporter(run, trainer.last_step, trainer.state.step, main)
    with stop_signals() as stop, reporter as report:
        if trainer.precision != config.precision:
            report.say(f"note: no {config.precision} arithmetic here; training in fp32")
        stops = any_process(trainer.accelerator, stop.requested)
        while trainer.state.step < trainer.last_step and not stops:
            loss, norm = trainer.update(next(batches))
            step = trainer.state.step
            meter.add(loss, norm)
            report.advance(step)
            if step % config.log_every == 0 or step == trainer.last_step:
                report.record(step, "train", {**meter.means(), **trainer.settings(step)})
            if step % trainer.per_pass == 0 and config.inner_steps() is None:
                if trainer.state.aggressive:
                    report.say(trainer.end_of_pass())
            if step % config.eval_every == 0 or step == trainer.last_step:
                trainer.evaluate(report)
            elif step % config.save_every == 0:
                trainer.save(("last",))
            stops = any_process(trainer.accelerator, stop.requested)
        if stops and trainer.state.step < trainer.last_step:
            trainer.save(("last",))
    return FitResult(trainer.state.step, trainer.state.step >= trainer.last_step)
