"""SI-CVAE: the conditional VAE of Zhao et al. 2017 with the paper's semi-implicit posterior.

The network is Zhao et al.'s; only the recognition network differs: its input is the condition
vector, the response vector and noise eps_lam, so that q(z|x,c) is a mixture over the noise. The
noise is an argument everywhere. Generation uses the prior alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from siserve_training.data.batches import DialogBatch
from siserve_training.distributions import DiagonalNormal
from siserve_training.models.draws import Draws, Encoded
from siserve_training.nets.gru import PackedLayout
from siserve_training.nets.heads import BagOfWords, GaussianHead
from siserve_training.nets.output import WordSample, bag_log_probs, token_log_probs
from siserve_training.nets.recurrent import ContextEncoder, ResponseDecoder, UtteranceEncoder

__all__ = ["SICVAE", "SICVAEConfig"]

_INIT_BOUND = 0.08
_PROFILE_SIZE = 8


class SICVAEConfig(PreTrainedConfig):
    """Sizes of an SI-CVAE; the defaults are the paper's.

    Attributes:
        vocabulary: number of word ids.
        word_embedding: size of a word vector.
        utterance_hidden: hidden units of the utterance encoder, per direction.
        context_hidden: hidden units of the context encoder.
        topics: known topics; 0 leaves the topic embedding out.
        topic_embedding: size of a topic's vector.
        profile: whether the condition vector holds the two speakers' profiles.
        latent: D.
        noise: size of eps_lam.
        post_hidden: tanh layer of the posterior, 0 for the literal single linear layer, under
            which mu and logvar are affine in the noise.
        prior_hidden: tanh layer of the prior.
        decoder_hidden: hidden units of the decoder.
        bow_hidden: tanh layer of the bag-of-words head, 0 to leave the head out.
        logvar_clamp: bound on the absolute log-variances, 0 for none.
    """

    model_type = "si-cvae"

    def __init__(
        self,
        vocabulary: int = 10_002,
        word_embedding: int = 200,
        utterance_hidden: int = 300,
        context_hidden: int = 600,
        topics: int = 0,
        topic_embedding: int = 30,
        profile: bool = False,
        latent: int = 200,
        noise: int = 100,
        post_hidden: int = 400,
        prior_hidden: int = 400,
        decoder_hidden: int = 400,
        bow_hidden: int = 0,
        logvar_clamp: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.vocabulary = vocabulary
        self.word_embedding = word_embedding
        self.utterance_hidden = utterance_hidden
        self.context_hidden = context_hidden
        self.topics = topics
        self.topic_embedding = topic_embedding
        self.profile = profile
        self.latent = latent
        self.noise = noise
        self.post_hidden = post_hidden
        self.prior_hidden = prior_hidden
        self.decoder_hidden = decoder_hidden
        self.bow_hidden = bow_hidden
        self.logvar_clamp = logvar_clamp
        super().__init__(**kwargs)

    @property
    def condition(self) -> int:
        """C, the size of the condition vector."""
        topic = self.topic_embedding if self.topics else 0
        return topic + (_PROFILE_SIZE if self.profile else 0) + self.context_hidden

    @property
    def response(self) -> int:
        """F, the size of an utterance vector."""
        return 2 * self.utterance_hidden


class SICVAE(PreTrainedModel):
    """Prior p(z|c), semi-implicit posterior q(z|x,c) and decoder p(x|z,c).

    Args:
        config: the sizes.
    """

    config_class = SICVAEConfig
    base_model_prefix = ""
    main_input_name = "utterances"

    def __init__(self, config: SICVAEConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary, config.word_embedding, padding_idx=0)
        if config.topics:
            self.topic_embedding = nn.Embedding(config.topics + 1, config.topic_embedding)
        self.utterance_encoder = UtteranceEncoder(config.word_embedding, config.utterance_hidden)
        self.context_encoder = ContextEncoder(config.response, config.context_hidden)
        self.prior_net = GaussianHead(
            config.condition, 0, config.prior_hidden, config.latent, config.logvar_clamp
        )
        self.posterior_net = GaussianHead(
            config.condition + config.response,
            config.noise,
            config.post_hidden,
            config.latent,
            config.logvar_clamp,
        )
        condition = config.condition + config.latent
        self.decoder = ResponseDecoder(
            condition, config.word_embedding, config.decoder_hidden, config.vocabulary
        )
        if config.bow_hidden:
            self.bow_head = BagOfWords(condition, config.bow_hidden, config.vocabulary)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as Zhao et al.: U(-0.08, 0.08), Glorot for dense layers, GRU gates at 1."""
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -_INIT_BOUND, _INIT_BOUND)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                if "weight" in name:
                    nn.init.uniform_(parameter, -_INIT_BOUND, _INIT_BOUND)
                else:
                    nn.init.zeros_(parameter)
                    if "bias_ih" in name:  # gate order r, z, n; the candidate's bias stays 0
                        nn.init.ones_(parameter[: 2 * module.hidden_size])
        if isinstance(module, ResponseDecoder):
            nn.init.uniform_(module.out.weight, -_INIT_BOUND, _INIT_BOUND)

    def inference_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of q(z|x,c) alone, which Algorithm 1's inner steps train."""
        return list(self.posterior_net.parameters())

    def encode(self, batch: DialogBatch) -> Encoded:
        """Encode every distinct utterance once, then the contexts over them."""
        vectors = self.encode_utterances(batch.utterances, batch.lengths)  # (Q, F)
        context = self.context_encoder(vectors, batch.context, batch.floor, batch.context_lengths)
        c = self.condition(context, batch.topic, batch.profile)  # (B, C)
        return Encoded(c, vectors[batch.response])

    def encode_utterances(self, utterances: Tensor, lengths: Tensor) -> Tensor:
        """Encode utterances, longest first, (Q, T) and (Q,) to (Q, F)."""
        words, places = torch.unique(utterances, return_inverse=True)
        return cast(Tensor, self.utterance_encoder(self.embedding(words), places, lengths))

    def condition(self, context: Tensor, topic: Tensor, profile: Tensor) -> Tensor:
        """Join the parts of c that this model has, (B, C)."""
        parts = [context]
        if self.config.profile:
            parts.insert(0, profile.to(context.dtype))
        if self.config.topics:
            parts.insert(0, self.topic_embedding(topic))
        return torch.cat(parts, dim=-1)

    def prior(self, c: Tensor) -> DiagonalNormal:
        """Return p(z|c), (B, C) to batch shape (B, D)."""
        mu, logvar = self.prior_net(c)
        return DiagonalNormal(mu.float(), logvar.float())

    def conditional(self, encoded: Encoded, eps_lam: Tensor) -> DiagonalNormal:
        """Return q(z|lambda) for each draw of the noise, (B, S, E) to batch shape (B, S, D)."""
        features = torch.cat([encoded.c, encoded.response], dim=-1)
        mu, logvar = self.posterior_net(features, eps_lam)
        return DiagonalNormal(mu.float(), logvar.float())

    def log_p_x(
        self, batch: DialogBatch, c: Tensor, z: Tensor, sample: WordSample | None = None
    ) -> Tensor:
        """Return log p(x|z,c) summed over tokens after ``<s>``, (B, J)."""
        pairs, draws, _ = z.shape  # B, J, D
        state = self.decoder.first_state(c.unsqueeze(1).expand(-1, draws, -1), z.to(c.dtype))
        layout = PackedLayout.of(batch.response_lengths.repeat_interleave(draws), z.device)
        ids = batch.utterances[batch.response]  # (B, T)
        words, places = torch.unique(ids, return_inverse=True)
        inputs = places[layout.rows // draws, layout.steps]  # (N,)
        targets = ids[layout.rows // draws, layout.steps + 1]
        states = self.decoder(self.embedding(words), inputs, layout, state.flatten(0, 1))
        log_p = token_log_probs(states, self.decoder.out, targets, sample)  # (N,)
        sums = log_p.new_zeros(pairs * draws).index_add(0, layout.rows, log_p)
        return sums.view(pairs, draws)  # (B, J)

    def log_p_bow(
        self, batch: DialogBatch, c: Tensor, z: Tensor, sample: WordSample | None = None
    ) -> Tensor:
        """Return the bag-of-words log-likelihood of the response, (B, J)."""
        draws = z.shape[1]
        condition = torch.cat([c.unsqueeze(1).expand(-1, draws, -1), z.to(c.dtype)], dim=-1)
        features = self.bow_head(condition)  # (B, J, H)
        words = batch.utterances[batch.response][:, 1:]  # (B, T-1)
        log_p = bag_log_probs(features, self.bow_head.out, words, sample)  # (B, J, T-1)
        return torch.where((words != 0).unsqueeze(1), log_p, 0.0).sum(-1)

    def forward(
        self,
        batch: DialogBatch,
        eps_lam: Tensor,
        eps_z: Tensor,
        bow: bool = False,
        sample: WordSample | None = None,
    ) -> Draws:
        """Draw J latents from the posterior and decode the response from each.

        Args:
            batch: B pairs.
            eps_lam: noise of J own and K auxiliary lambdas, own first, (B, J+K, E).
            eps_z: noise of the latents, (B, J, D).
            bow: whether to score the bag of words too.
            sample: words over which the softmax is estimated; None for all.
        """
        draws = eps_z.shape[1]
        encoded = self.encode(batch)
        components = self.conditional(encoded, eps_lam)
        own, aux = components.draws(0, draws), components.draws(draws)
        z = own.rsample(eps_z)  # (B, J, D)
        return Draws(
            z=z,
            prior=self.prior(encoded.c).expand_draws(),
            own=own,
            aux=aux,
            log_p_x=self.log_p_x(batch, encoded.c, z, sample),
            log_p_bow=self.log_p_bow(batch, encoded.c, z, sample) if bow else None,
            tokens=batch.response_lengths,
        )
