"""The configuration of a run: one frozen dataclass, every default in this file.

Presets (presets/*.toml) and `--set key=value` change fields by name; an unknown key or a value of
the wrong kind is an error. Points that the paper and its peers leave open are fields too, so that
every run logs what it chose.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from siserve_training.errors import ConfigError
from siserve_training.methods import METHODS_OF

__all__ = ["TrainConfig", "list_presets", "parse_setting", "preset_values"]

_CHOICES = {
    "task": tuple(METHODS_OF),
    "schedule": ("constant", "monotonic", "cyclical"),
    "noise_entry": ("added", "multiplied"),
    "kl_form": ("monte-carlo", "closed-form"),
    "precision": ("fp32", "tf32", "bf16"),
    "co_updates": ("joint", "alternate"),
    "autoencoder_optimizer": ("sgd", "adam"),
}
_AT_LEAST = {
    2: "prior_components",
    1: "vocabulary_size context_utterances word_embedding utterance_hidden context_hidden "
    "topic_embedding latent noise components prior_hidden decoder_hidden num_latents cycles "
    "batch_size run_length log_every eval_every save_every critic_hidden rate_decay_passes "
    "critic_steps num_refine_steps",
    0: "noise_gain prior_noise post_hidden bow_hidden logvar_clamp num_aux aux_horizon aux_floor "
    "beta_max free_nats bow_weight max_steps co_ramp learning_rate seed valid_pairs frequent_words "
    "sampled_words generator_rate critic_rate gp_weight context_encoder_rate refine_rate "
    "refine_words",
}
_ABOVE_0 = "init_bound passes clip_norm ratio exploding_loss rate_decay gumbel_temperature"
_SHARES = "hide_feature_rate decay_share exact_share"
_DROPOUTS = (
    "encoder_dropout utterance_dropout context_dropout decoder_dropout output_dropout "
    "refine_momentum"
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run but its corpus and its folder.

    Sizes default to the paper's for dialog (reference: Zhao et al. 2017's code for what the paper
    takes over); those of task lm stand in its presets. There a sentence is an utterance.
    """

    task: str = "dialog"
    method: str = "si-cvae"
    start_from: str = ""  # folder of a run of the same sizes, noise aside, to begin with

    # corpus
    vocabulary_size: int = 10_000  # most frequent tokens kept, marks counted, <pad> and <unk> not
    context_utterances: int = 9
    max_utterance_tokens: int = 40  # <s> and </s> included
    use_topic: bool = True  # off by itself where the corpus has none
    use_profile: bool = True
    hide_feature_rate: float = 0.5  # 0 for parity with the paper
    word_vectors: str = ""  # GloVe text file to start word vectors from
    context_encoder: str = "gru"  # or hf:DIR, a pretrained BERT for the utterances of contexts
    tune_context_encoder: bool = False  # hf:DIR; whether it is trained too
    context_encoder_rate: float = 0.02  # hf:DIR, tuned; factor on the learning rate

    # model
    word_embedding: int = 200
    utterance_hidden: int = 300
    context_hidden: int = 600
    topic_embedding: int = 30
    latent: int = 200
    noise: int = 100  # si-cvae; the paper's size
    noise_entry: str = "added"  # to the first layer's product with the features, or multiplied
    noise_gain: float = 1.0  # factor on the noise's weights at the start
    start_logvar: float = 0.0  # log-variance of q(z|lambda) at the start
    init_bound: float = 0.1  # lm; weights start in U(-b, b) (Kim et al. at 512 and 1024 units: 0.1)
    prior_noise: int = 0  # si-cvae; above 0 the prior is semi-implicit too
    components: int = 5  # gmm-cvae
    post_hidden: int = 400  # 0: the literal single linear layer
    prior_hidden: int = 400
    decoder_hidden: int = 400
    bow_hidden: int = 400
    logvar_clamp: float = 10.0  # 0: none, for parity with the peers
    encoder_dropout: float = 0.0  # hred, dialogwae; of a word's units (TEXAR, Gu et al.: 0.5)
    context_dropout: float = 0.0  # hred; of c (TEXAR: 0.7)
    decoder_dropout: float = 0.0  # hred, dialogwae, lm; of a word's (TEXAR: 0.7, others: 0.5)
    output_dropout: float = 0.0  # lm; of a state before the output layer (Kim et al.: 0.5)
    num_refine_steps: int = 20  # sa-vae; SVI steps
    refine_rate: float = 0.03  # sa-vae; on a sentence's own bound (Kim et al.: 1 on a mean of 32)
    refine_momentum: float = 0.5  # sa-vae
    refine_words: int = 1000  # sa-vae; frequent words that guide the steps; 0 for all words
    prior_components: int = 3  # dialogwae-gmp
    gumbel_temperature: float = 0.1  # dialogwae-gmp; of the choice, in gradients
    critic_hidden: int = 600  # dialogwae
    keep_start_mark: bool = True  # dialogwae; whether <s> is encoded, false in the authors' code
    utterance_dropout: float = 0.0  # dialogwae; of [utterance, floor] (the authors: 0.25)

    # objective
    num_latents: int = 5  # J
    num_aux: int = 30  # K_max
    aux_horizon: float = 1.0
    aux_floor: int = 1
    schedule: str = "cyclical"
    cycles: int = 4
    ratio: float = 0.5
    beta_max: float = 1.0
    kl_form: str = "monte-carlo"  # closed-form: for a Gaussian posterior and prior
    free_nats: float = 0.0  # the KL term's pull ends below this batch mean
    bow_weight: float = 0.0
    aggressive: str = "off"  # off, fixed:T or adaptive (Algorithm 1)

    # optimisation
    batch_size: int = 30  # pairs, over all processes
    run_length: int = 5  # consecutive windows that stay together
    passes: float = 8.0  # over the training pairs; the schedules' horizon
    max_steps: int = 0  # ends the run early; 0 for none
    learning_rate: float = 1e-3
    decay_share: float = 0.0  # last share of the run in which the rate falls to 0, linearly
    cosine_cycles: bool = False  # the rate falls to 0 within each cycle of beta
    clip_norm: float = 5.0  # of all gradients; cvae-co clips each element to it
    co_updates: str = "joint"  # cvae-co; both losses each step, or alternate: pass by pass
    co_ramp: int = 2500  # cvae-co; updates over which G(z) takes the place of r
    autoencoder_optimizer: str = "sgd"  # dialogwae; sgd or adam, at learning_rate
    rate_decay: float = 0.6  # dialogwae; factor on the autoencoder's rate ...
    rate_decay_passes: int = 2  # ... after each so many passes
    generator_rate: float = 5e-5  # dialogwae; of RMSprop
    critic_rate: float = 1e-5  # dialogwae; of RMSprop
    critic_steps: int = 5  # dialogwae; for each update of the autoencoder
    critic_fresh_batches: bool = True  # dialogwae; all but the first on batches of their own
    gp_weight: float = 10.0  # dialogwae; of the gradient penalty
    gp_per_sample: bool = False  # dialogwae; false: gradients of a batch mean, as the authors have
    exploding_loss: float = 1e5  # nats; a loss above it stops the run
    frequent_words: int = 0  # words that a sampled softmax always holds; 0 for the exact softmax
    sampled_words: int = 500  # drawn from the others at each step
    exact_share: float = 0.1  # last share of the run with the exact softmax all the same
    precision: str = "fp32"
    seed: int = 0

    # bookkeeping, in steps
    log_every: int = 10
    eval_every: int = 1000
    save_every: int = 500
    valid_pairs: int = 0  # pairs of the valid split that validation uses; 0 for all

    def __post_init__(self) -> None:
        """Check values where a wrong one would train something else than was meant."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        methods = METHODS_OF[self.task]
        if self.method not in methods:
            raise ConfigError(
                f"method of task {self.task} must be one of {', '.join(methods)}, "
                f"got {self.method!r}"
            )
        self._check_ranges()
        if self.max_utterance_tokens < 3:
            raise ConfigError(
                f"max_utterance_tokens must be at least 3, got {self.max_utterance_tokens}: "
                "<s>, a word and </s>"
            )
        kind, _, folder = self.context_encoder.partition(":")
        if self.context_encoder != "gru" and not (kind == "hf" and folder):
            raise ConfigError(
                f"context_encoder must be gru or hf:DIR, got {self.context_encoder!r}"
            )
        if self.tune_context_encoder and self.context_encoder == "gru":
            raise ConfigError(
                "tune_context_encoder is for context_encoder=hf:DIR; a GRU is always trained"
            )
        if self.bow_weight and not self.bow_hidden:
            raise ConfigError("bow_weight needs a bag-of-words head; set bow_hidden above 0")
        if self.method in ("gmm-cvae", "gmm-vae") and self.num_latents != self.components:
            raise ConfigError(
                f"{self.method} draws one latent of each component: num_latents must equal "
                f"components, got {self.num_latents} and {self.components}"
            )
        if self.task == "lm" and (self.bow_weight or self.context_encoder != "gru"):
            raise ConfigError("task lm has no bag of words and no context: leave those keys out")
        self.inner_steps()

    def _check_ranges(self) -> None:
        for least, names in _AT_LEAST.items():
            for name in names.split():
                if getattr(self, name) < least:
                    raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in _ABOVE_0.split():
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in _SHARES.split():
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0 to 1, got {getattr(self, name)}")
        for name in _DROPOUTS.split():
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must lie from 0 to below 1, got {getattr(self, name)}; 1 drops all"
                )

    @property
    def pretrained_folder(self) -> Path | None:
        """DIR of context_encoder=hf:DIR, None for the GRU."""
        kind, _, folder = self.context_encoder.partition(":")
        return Path(folder) if kind == "hf" else None

    def inner_steps(self) -> int | None:
        """Return Algorithm 1's T_a: 0 for off, None for adaptive.

        Raises:
            ConfigError: if `aggressive` is none of off, fixed:T, adaptive.
        """
        kind, _, count = self.aggressive.partition(":")
        if self.aggressive == "off":
            return 0
        if self.aggressive == "adaptive":
            return None
        if kind == "fixed" and count.isdecimal() and int(count) > 0:
            return int(count)
        raise ConfigError(
            "aggressive must be off, fixed:T with T at least 1, or adaptive; got "
            f"{self.aggressive!r}"
        )

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> TrainConfig:
        """Make a configuration of named values, checking names and kinds."""
        types = get_type_hints(cls)
        for name, value in values.items():
            if name not in types:
                close = difflib.get_close_matches(name, types, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"unknown configuration key {name!r}{hint}")
            if types[name] is float and type(value) is int:
                values = {**values, name: float(value)}
            elif type(value) is not types[name]:
                raise ConfigError(
                    f"{name} takes a value of kind {types[name].__name__}, got {value!r}"
                )
        return cls(**values)

    def to_json(self) -> str:
        """Return every field with its value."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, serialized: str) -> TrainConfig:
        """Read what `to_json` wrote."""
        return cls.from_values(json.loads(serialized))


def list_presets() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("siserve_training") / "presets"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset_values(preset: str) -> dict[str, Any]:
    """Return the values that a preset sets: one of ours by name, or a TOML file of the user's."""
    if preset in list_presets():
        content = (resources.files("siserve_training") / "presets" / f"{preset}.toml").read_text()
    elif Path(preset).is_file():
        content = Path(preset).read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"no preset {preset!r}: expected a TOML file or one of {', '.join(list_presets())}"
        )
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"preset {preset}: not TOML ({error})") from None


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split KEY=VALUE and read the value as TOML; a bare word is a string."""
    name, equals, value = setting.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set takes KEY=VALUE, got {setting!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
