"""DialogWAE: who learns from which loss, the critic's penalty, the choice among Gaussians."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from siserve_training.config import TrainConfig, preset_values
from siserve_training.errors import ConfigError
from siserve_training.methods import load_method
from siserve_training.models.dialogwae import DialogWAE
from siserve_training.objectives.schedules import Moment
from siserve_training.tasks.dialog import build_model, load_dialog_data, validate
from siserve_training.tasks.prepared import StepNoise, prepare_batch, training_batches

from .conftest import TINY

CODERS = {"embedding", "topic_embedding", "utterance_encoder", "context_encoder", "decoder"}
POSTERIOR = {"posterior_net", "posterior_generator"}
PRIOR = {"prior_net", "prior_generator"}
LEARNS = {
    "autoencoder": CODERS | POSTERIOR,
    "generators": POSTERIOR | PRIOR,
    "critic": {"critic"},
}
MOMENT = Moment(1, 100, 10, 1.0, 0)


def settings(**changes):
    own = {"method": "dialogwae-gmp", "keep_start_mark": False, "critic_hidden": 8, "num_aux": 0}
    return TrainConfig.from_values({**TINY, **own, **changes})


@pytest.fixture(scope="module")
def config():
    return settings(encoder_dropout=0.4, utterance_dropout=0.3, decoder_dropout=0.2)


@pytest.fixture(scope="module")
def data(corpus, config):
    return load_dialog_data(corpus, config, skip_bad_lines=False)


def lively(config, data) -> DialogWAE:
    """A model whose weights are large enough for every part to matter."""
    model = build_model(config, data)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    assert isinstance(model, DialogWAE)
    return model.train()


@pytest.fixture
def model(config, data):
    return lively(config, data)


def prepared(data, config, rows=slice(None)):
    _, responses = next(training_batches(data.train, config, 0))
    widths = load_method(config.method).model_config(config, data.text.size, data.features).widths
    noise = StepNoise.of(0, 0, 0)
    return prepare_batch(
        data.train, responses[rows], config, widths, noise, 0, sample_from=0, hide=False
    )


def loss(model, batch, config, part):
    return load_method(config.method).loss(model, batch, config, MOMENT, part)


def moved(config, model, part):
    """Names of the parts of the model that an update of this part changes."""
    method = load_method(config.method)
    (optimizers,) = {u.optimizers for u in method.updates(config, MOMENT) if u.part == part}
    made = method.optimizers(config, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name in optimizers:
        made[name].step()
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    return {name.split(".")[0] for name in changed}


@pytest.mark.parametrize("part", LEARNS)
def test_an_update_moves_its_own_networks_and_no_others(model, data, config, part):
    loss(model, prepared(data, config), config, part).loss.backward()
    assert moved(config, model, part) == LEARNS[part]


@pytest.mark.parametrize("part", LEARNS)
def test_no_gradient_goes_where_it_is_not_used(model, data, config, part):
    loss(model, prepared(data, config), config, part).loss.backward()
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    passed = {"critic"} if part == "generators" else set()  # through the critic to the generators
    assert reached == LEARNS[part] | passed


@pytest.mark.parametrize(("part", "sign"), [("generators", -1), ("critic", 1)])
def test_the_generators_close_the_gap_that_the_critic_opens(model, data, config, part, sign):
    config = replace(config, gp_weight=0.0)
    batch = prepared(data, config)
    before = loss(model, batch, config, part)
    before.loss.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[0] in LEARNS[part]:
                parameter -= 1e-3 * parameter.grad
    gap = "critic_gap" if part == "critic" else "generator_gap"
    after = loss(model, batch, config, part)
    assert sign * float(after.parts[gap] - before.parts[gap]) > 1e-5


def test_losses_share_one_gap_and_the_penalty_has_its_weight(model, data, config):
    batch = prepared(data, config)
    critic, generators = (loss(model, batch, config, p) for p in ("critic", "generators"))
    assert critic.parts["critic_gap"] == pytest.approx(float(generators.loss.detach()), rel=1e-5)
    expected = config.gp_weight * critic.parts["penalty"] - critic.parts["critic_gap"]
    assert float(critic.loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_masks_of_dropout_follow_the_seed_of_the_batch_and_evaluation_has_none(model, data, config):
    batch = prepared(data, config)
    other = replace(batch, seed=batch.seed + 1)

    def both():
        return [
            float(loss(model, b, config, "autoencoder").loss.detach())
            for b in (batch, batch, other)
        ]

    first, again, changed = both()
    assert first == again != changed
    model.train(False)
    first, again, changed = both()
    assert first == again == changed


@pytest.mark.parametrize("key", ["encoder_dropout", "utterance_dropout", "decoder_dropout"])
def test_every_rate_of_dropout_reaches_its_place(data, config, key):
    off = {"encoder_dropout": 0.0, "utterance_dropout": 0.0, "decoder_dropout": 0.0}
    values = []
    for rates in (off, {**off, key: 0.5}):
        changed = settings(**rates)
        batch = prepared(data, changed)
        found = loss(lively(changed, data), batch, changed, "autoencoder").loss
        values.append(float(found.detach()))
    assert values[0] != pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize("keep", [False, True])
def test_the_start_mark_is_encoded_only_if_it_is_kept(data, keep):
    model = lively(settings(keep_start_mark=keep), data).train(False)
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 6, 3, 0, 0]])
    other = ids.clone()
    other[:, 0] = 5
    lengths = torch.tensor([5, 3])
    same = torch.equal(*(model.encode_utterances(x, lengths) for x in (ids, other)))
    assert same != keep


def test_the_decoder_starts_from_the_latent_and_the_context_themselves(model, config):
    c, z = torch.randn(3, model.config.condition), torch.randn(3, config.latent)
    assert torch.equal(model.first_state(c, z), torch.cat([z, c], dim=1))


@torch.no_grad()
def test_further_noise_of_the_prior_chooses_among_as_many_latents_as_components(model, config):
    model.train(False)
    latent, draws = config.latent, 200
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(1, 1, model.config.prior_width, generator=generator).repeat(1, draws, 1)
    eps[..., latent:] = torch.randn(1, draws, config.prior_components, generator=generator)
    z = model.draw_prior(torch.randn(1, model.config.condition), eps)
    assert len(torch.unique(z[0].round(decimals=4), dim=0)) == config.prior_components


def test_a_batch_of_one_pair_trains(data, config):
    config = replace(config, num_latents=1)
    model = lively(config, data)
    batch = prepared(data, config, slice(0, 1))
    for part in LEARNS:
        assert torch.isfinite(loss(model, batch, config, part).loss)


def test_running_statistics_are_saved_and_loaded(model, data, config, tmp_path):
    loss(model, prepared(data, config), config, "autoencoder")
    model.save_pretrained(tmp_path)
    back = DialogWAE.from_pretrained(tmp_path)
    buffers = dict(back.named_buffers())
    assert any(name.endswith("running_var") for name in buffers)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    for name, parameter in model.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name


@pytest.mark.parametrize(("fresh", "expected"), [(True, [False, True, True]), (False, [False] * 3)])
def test_a_step_is_autoencoder_generators_then_critic(fresh, expected):
    config = settings(critic_steps=3, critic_fresh_batches=fresh)
    updates = load_method("dialogwae").updates(config, MOMENT)
    assert [u.part for u in updates] == ["autoencoder", "generators", *["critic"] * 3]
    assert [u.fresh_batch for u in updates] == [False, False, *expected]


def test_the_autoencoders_rate_falls_by_steps_and_the_others_stay():
    config = settings(learning_rate=1.0, rate_decay=0.6, rate_decay_passes=2)
    method = load_method("dialogwae")
    rates = {}
    for name in LEARNS:
        moments = [Moment(step, 1000, 10, 1.0, 0) for step in (1, 20, 21, 40, 41)]
        rates[name] = [method.learning_rate(config, name, moment) for moment in moments]
    assert rates["autoencoder"] == pytest.approx([1.0, 1.0, 0.6, 0.6, 0.36])
    assert set(rates["generators"]) == {config.generator_rate}
    assert set(rates["critic"]) == {config.critic_rate}


def test_only_encoders_and_decoder_are_clipped_and_only_for_the_autoencoder(model, data, config):
    config = replace(config, clip_norm=1e-3)
    clip = load_method(config.method).clip
    for part in LEARNS:
        model.zero_grad()
        loss(model, prepared(data, config), config, part).loss.backward()
        before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        assert clip(model, config, part) > config.clip_norm
        after = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        changed = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}
        assert changed == (CODERS if part == "autoencoder" else set())


def test_the_presets_are_the_authors_sizes_and_rates():
    for name in ("dialogwae", "dialogwae-gmp"):
        config = TrainConfig.from_values(preset_values(f"dialog-{name}"))
        assert (config.latent, config.utterance_hidden, config.context_hidden) == (200, 300, 300)
        assert (config.critic_hidden, config.critic_steps, config.gp_weight) == (600, 5, 10.0)
        assert (config.learning_rate, config.clip_norm, config.rate_decay) == (1.0, 1.0, 0.6)
        assert (config.generator_rate, config.critic_rate) == (5e-5, 1e-5)
        assert not (config.use_topic or config.use_profile or config.keep_start_mark)
        dropout = (config.encoder_dropout, config.utterance_dropout, config.decoder_dropout)
        assert dropout == (0.5, 0.25, 0.5)
    assert config.method == "dialogwae-gmp" and config.prior_components == 3


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"prior_components": 1}, "prior_components must be at least 2, got 1"),
        ({"decoder_dropout": 1.0}, "decoder_dropout must lie from 0 to below 1"),
        ({"gumbel_temperature": 0.0}, "gumbel_temperature must be above 0"),
        ({"autoencoder_optimizer": "adagrad"}, "autoencoder_optimizer must be one of sgd, adam"),
        ({"critic_steps": 0}, "critic_steps must be at least 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values, what):
    with pytest.raises(ConfigError, match=what):
        settings(**values)


def test_validation_takes_ten_draws_of_the_prior_each_with_a_choice_of_its_own(data, monkeypatch):
    """One draw would make the best checkpoint a matter of luck."""
    one, ten = settings(num_latents=1), settings(num_latents=10)
    model = lively(one, data)
    drawn = []
    draw_prior = model.draw_prior

    def watched(c, eps):
        drawn.append(eps)
        return draw_prior(c, eps)

    monkeypatch.setattr(model, "draw_prior", watched)
    scores = [validate(model, data.valid, config, model.device)["score"] for config in (one, ten)]
    assert scores[0] == scores[1]
    of_choice = drawn[0][..., model.config.latent :]  # (B, 10, 3)
    assert of_choice.shape[1:] == (10, 3)
    assert not torch.equal(of_choice[:, 0], of_choice[:, 1])
