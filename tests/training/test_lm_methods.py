"""What every method of language modelling owes the package: laws, gradients, resumption."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from siserve_training.config import TrainConfig, list_presets, preset_values
from siserve_training.data.sentence_batches import SentenceBatch
from siserve_training.errors import ConfigError
from siserve_training.methods import LM_METHODS, METHODS_OF, load_method
from siserve_training.methods.method import LossReport
from siserve_training.models.language import LanguageModel
from siserve_training.objectives.schedules import Moment
from siserve_training.tasks.lm import (
    TASK,
    build_language_model,
    load_sentence_data,
    validate_sentences,
)
from siserve_training.tasks.prepared import TRAINING, PreparedBatch, StepNoise
from siserve_training.tasks.task import BatchWish
from siserve_training.training import resume_run, start_run

from .sentence_corpus import write_sentences

TINY = {
    "task": "lm",
    "word_embedding": 12,
    "utterance_hidden": 9,
    "decoder_hidden": 10,
    "latent": 5,
    "noise": 4,
    "post_hidden": 8,
    "components": 2,
    "num_latents": 2,
    "num_aux": 3,
    "num_refine_steps": 3,
    "refine_words": 5,
    "decoder_dropout": 0.2,
    "output_dropout": 0.2,
    "batch_size": 12,
    "log_every": 1,
    "learning_rate": 5e-3,
}
J, K = 2, 3


@pytest.fixture(scope="session")
def sentences(tmp_path_factory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("sentences"))


def config(method: str, **changes: Any) -> TrainConfig:
    return TrainConfig.from_values({**TINY, "method": method, **changes})


class Case:
    """A method, its model with weights that are no longer near zero, and a batch."""

    def __init__(self, method: str, corpus: Path, **changes: Any) -> None:
        self.config = config(method, **changes)
        self.data = load_sentence_data(corpus, self.config, skip_bad_lines=False)
        self.model: LanguageModel = build_language_model(self.config, self.data)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            for table in (self.model.embedding, self.model.reader.embedding):
                table.weight[0] = 0
        self.items = next(TASK.training_batches(self.config, self.data, 0, False))[1]

    def batch(self, sampled: bool = False, **wishes: Any) -> PreparedBatch:
        settings = replace(self.config, frequent_words=5, sampled_words=4)
        vocabulary = self.data.text.size if sampled else 0
        noise = StepNoise.of(0, TRAINING, 0)
        wish = BatchWish(self.model.config.widths, noise, K, vocabulary, **wishes)
        return TASK.prepare(settings, self.data, self.items, wish)

    def loss(self, batch: PreparedBatch, beta: float = 0.5) -> LossReport:
        moment = Moment(1, 100, 10, beta, K)
        return load_method(self.config.method).loss(self.model, batch, self.config, moment, "bound")


@pytest.fixture(params=LM_METHODS)
def case(request, sentences) -> Case:
    return Case(request.param, sentences)


def sentences_of(batch: PreparedBatch) -> SentenceBatch:
    assert isinstance(batch.pairs, SentenceBatch)
    return batch.pairs


def test_shapes_and_finite_densities(case):
    model, batch = case.model.train(False), case.batch()
    encoded = model.encode(sentences_of(batch))
    rows = len(batch.pairs)
    latents = model.draw_posterior(encoded, batch.noise)
    assert latents.z.shape == (rows, J, 5)
    for log_density in (latents.log_q_z, latents.log_p_z, latents.log_own_z):
        assert log_density.shape == (rows, J) and bool(torch.isfinite(log_density).all())
    eps = torch.randn(rows, 7, 5)
    assert torch.equal(model.draw_prior(encoded.c, eps), eps)


@torch.no_grad()
def test_log_p_x_is_the_sum_over_the_steps_of_the_decoder(case):
    """Scoring and generating go through different code; they must be one model."""
    model, batch = case.model.train(False), case.batch()
    text = sentences_of(batch)
    encoded = model.encode(text)
    z = model.draw_posterior(encoded, batch.noise).z
    expected = model.log_p_x(text, encoded.c, z)
    for draw in range(J):
        state, total = model.first_state(encoded.c, z[:, draw]), torch.zeros(len(text))
        for step in range(text.ids.shape[1] - 1):
            logits, state = model.step(text.ids[:, step], state)
            target = text.ids[:, step + 1].unsqueeze(1)
            total += torch.log_softmax(logits, -1).gather(1, target).squeeze(1)
        torch.testing.assert_close(total, expected[:, draw], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
def test_the_loss_is_finite_and_every_parameter_learns_from_it(case, sampled):
    case.model.train()
    report = case.loss(case.batch(sampled))
    assert torch.isfinite(report.loss) and report.tokens > 0
    report.loss.backward()
    for name, parameter in case.model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_losses_of_the_cpu(case):
    batch = case.batch()
    case.model.train(False)
    on_cpu = case.loss(batch).loss
    torch.nn.Module.to(case.model, torch.device("cuda"))
    on_gpu = case.loss(batch.to(torch.device("cuda"))).loss
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-2, rtol=1e-3)


def test_without_a_kl_weight_the_prior_pulls_nowhere(case):
    """Beta = 0 is reconstruction alone, beta = 1 the whole bound; the loss is linear between."""
    if case.config.method == "sa-vae":
        pytest.skip("beta moves what a refined posterior climbs, so its loss bends")
    case.model.train(False)
    none, half, whole = (case.loss(case.batch(), beta) for beta in (0.0, 0.5, 1.0))
    assert none.loss.item() == pytest.approx(none.parts["rec"].item(), rel=1e-6)
    assert whole.loss.item() == pytest.approx((none.parts["rec"] + whole.parts["kl"]).item())
    assert half.loss.item() == pytest.approx((none.loss + whole.loss).item() / 2, rel=1e-5)


def test_si_with_its_noise_cut_is_the_vae_for_every_k(sentences):
    case = Case("si-vae", sentences, post_hidden=0)
    plain = Case("vae", sentences, post_hidden=0)
    state = case.model.state_dict()
    cut = state["posterior_net.out.weight"][:, :-4]
    plain.model.load_state_dict({**state, "posterior_net.out.weight": cut})
    with torch.no_grad():
        case.model.posterior_net.out.weight[:, -4:] = 0
    case.model.train(False)
    plain.model.train(False)
    batch = case.batch()
    noise = replace(batch.noise, eps_lam=batch.noise.eps_lam[:, :, :0])
    ours = case.loss(batch, 1.0)
    theirs = plain.loss(replace(batch, noise=noise), 1.0)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert ours.parts["b_k"].item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("bound", [0.1, 0.3])
def test_weights_start_as_far_from_zero_as_the_configuration_says(sentences, bound):
    made = config("vae", init_bound=bound)
    model = build_language_model(made, load_sentence_data(sentences, made, skip_bad_lines=False))
    for name, parameter in model.named_parameters():
        if name != "posterior_net.out.bias":  # its half of log-variances starts at start_logvar
            assert bound / 2 < parameter.abs().max() <= bound, name


def test_refinement_raises_the_bound_that_it_climbs(sentences):
    case = Case("sa-vae", sentences, num_refine_steps=20)
    case.model.train(False)
    batch = case.batch()
    encoded = case.model.encode(sentences_of(batch))
    start = case.model.mixture(encoded, batch.noise.eps_lam).components.draws(0, 1)
    end = case.model.posterior_mixture(encoded, batch.noise).components.draws(0, 1)
    eps = torch.randn(len(batch.pairs), 200, 5, generator=torch.Generator().manual_seed(0))

    def bound(q):
        log_p_x = case.model.log_p_x(sentences_of(batch), encoded.c, q.rsample(eps))
        return float(log_p_x.mean() - q.kl(case.model.prior(encoded.c)).mean())

    with torch.no_grad():
        assert bound(end) > bound(start) + 0.05


def test_two_processes_share_a_batch_and_one_without_sentences_counts_nothing(sentences):
    case = Case("si-vae", sentences)
    case.items = case.items[:3]
    shares = [case.batch(rank=rank, world=4) for rank in range(4)]
    assert [len(part.pairs) for part in shares] == [1, 1, 1, 1]
    assert [part.share for part in shares] == pytest.approx([4 / 3, 4 / 3, 4 / 3, 0.0])
    whole = sentences_of(case.batch())
    for row, part in enumerate(shares[:3]):
        assert torch.equal(sentences_of(part).ids[0], whole.ids[row])


@pytest.mark.parametrize(
    ("method", "aggressive"),
    [*((method, "fixed:1") for method in LM_METHODS), ("si-vae", "adaptive")],
)
def test_a_resumed_run_goes_on_as_an_unbroken_one(sentences, tmp_path, method, aggressive):
    how = {"passes": 0.3, "aggressive": aggressive, "num_refine_steps": 2}
    start_run(tmp_path / "whole", sentences, config(method, **how))
    start_run(tmp_path / "parts", sentences, config(method, **how, max_steps=2))
    resume_run(tmp_path / "parts", sentences, {"max_steps": 0})
    whole, parts = (losses(tmp_path / name) for name in ("whole", "parts"))
    assert len(whole) > 2
    assert parts == pytest.approx(whole, rel=1e-5)


def losses(out: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


@pytest.mark.parametrize("method", LM_METHODS)
def test_training_makes_held_out_sentences_likelier(sentences, tmp_path, method):
    chosen = config(method, passes=4.0, schedule="constant", eval_every=1000, save_every=1000)
    data = load_sentence_data(sentences, chosen, skip_bad_lines=False)
    device = torch.device("cpu")
    fresh = build_language_model(chosen, data)
    before = validate_sentences(fresh, data.valid, chosen, device)
    start_run(tmp_path / "run", sentences, chosen)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    after = [row for row in map(json.loads, lines) if row["kind"] == "valid"][-1]
    assert after["elbo"] > before["elbo"] + 1
    expected = math.exp(-after["elbo"] * len(data.valid) / data.valid.tokens)
    assert after["perplexity"] == pytest.approx(expected, rel=1e-6)


def test_no_method_stands_in_two_tasks_and_each_has_both_presets():
    names = [name for methods in METHODS_OF.values() for name in methods]
    assert len(names) == len(set(names))
    for task, methods in METHODS_OF.items():
        for method in methods:
            for preset in (f"{task}-{method}", f"{task}-{method}-small"):
                assert preset in list_presets()
                chosen = TrainConfig.from_values(preset_values(preset))
                assert (chosen.task, chosen.method.removesuffix("-bow")) == (
                    task,
                    method.removesuffix("-bow"),
                )


def test_the_papers_sizes_are_in_the_presets():
    chosen = TrainConfig.from_values(preset_values("lm-si-vae"))
    assert (chosen.word_embedding, chosen.utterance_hidden, chosen.decoder_hidden) == (
        512,
        1024,
        1024,
    )
    assert (chosen.latent, chosen.num_latents, chosen.num_aux) == (32, 5, 50)


def test_a_method_of_the_other_task_is_refused():
    with pytest.raises(ConfigError, match="of task lm must be one of si-vae, vae"):
        config("si-cvae")
    with pytest.raises(ConfigError, match="of task dialog"):
        TrainConfig.from_values({"method": "vae"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", LM_METHODS)
def test_training_and_validation_run_on_cuda(sentences, tmp_path, method):
    assert start_run(tmp_path / "run", sentences, config(method, max_steps=2)).finished
