"""What every dialog model has: encoders of utterances and contexts, and a way to score responses.

The rest of the package (loop, evaluation, export) sees a model through this class: encode, draw
latents from prior and posterior, score a response, step the decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from siserve_training.data.batches import DialogBatch
from siserve_training.models.draws import Encoded, Latents, Noise, NoiseWidths
from siserve_training.nets.collaborative import ConditionedDecoder
from siserve_training.nets.dropout import Dropout
from siserve_training.nets.gru import PackedLayout
from siserve_training.nets.initial import initialise_as_zhao
from siserve_training.nets.output import WordSample, token_log_probs
from siserve_training.nets.recurrent import ContextEncoder, ResponseDecoder, UtteranceEncoder
from siserve_training.nets.sentence import SentenceEncoder

__all__ = ["DialogModel", "DialogModelConfig", "PackedResponses"]

_PROFILE_SIZE = 8


class DialogModelConfig(PreTrainedConfig):
    """Sizes of the encoders; the defaults are those of Zhao et al. 2017.

    Attributes:
        vocabulary: number of word ids.
        word_embedding: size of a word vector.
        utterance_hidden: hidden units of the utterance encoder, per direction.
        context_hidden: hidden units of the context encoder.
        topics: known topics; 0 leaves the topic embedding out.
        topic_embedding: size of a topic's vector.
        profile: whether the condition vector holds the two speakers' profiles.
        latent: D.
        sentence_encoder: sizes of a pretrained encoder of context utterances (`SentenceEncoder`)
            in place of the GRU over words; None for the GRU.
        tunes_sentence_encoder: whether the model holds that encoder and trains it; if not, it is
            told vectors.
    """

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
        sentence_encoder: dict[str, Any] | None = None,
        tunes_sentence_encoder: bool = False,
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
        self.sentence_encoder = sentence_encoder
        self.tunes_sentence_encoder = tunes_sentence_encoder
        super().__init__(**kwargs)

    @property
    def condition(self) -> int:
        """C, the size of the condition vector."""
        topic = self.topic_embedding if self.topics else 0
        return topic + (_PROFILE_SIZE if self.profile else 0) + self.context_hidden

    @property
    def said(self) -> int:
        """Size of the vector of a context utterance."""
        return int(self.sentence_encoder["hidden"]) if self.sentence_encoder else self.response

    @property
    def response(self) -> int:
        """F, the size of an utterance vector."""
        return 2 * self.utterance_hidden

    @property
    def widths(self) -> NoiseWidths:
        """What noise the model takes."""
        return NoiseWidths(0, self.latent)

    @property
    def prior_width(self) -> int:
        """P, the numbers that a latent of the prior is drawn from."""
        return self.widths.z + self.widths.prior


@dataclass(frozen=True)
class PackedResponses:
    """Responses as a decoder takes them, J rows for each of B responses.

    Attributes:
        layout: of the packed tokens, R = B J rows.
        words: vectors of the distinct words, (M, W).
        places: index into `words` of each packed input token, (N,).
        targets: id of the token that follows each place, (N,).
        draws: J.
    """

    layout: PackedLayout
    words: Tensor
    places: Tensor
    targets: Tensor
    draws: int


class DialogModel(PreTrainedModel, ABC):
    """Encoders of utterances and contexts; the latents and the decoder are each model's own.

    Args:
        config: the sizes.
    """

    config_class: type[DialogModelConfig] = DialogModelConfig
    base_model_prefix = ""
    main_input_name = "utterances"
    #: Whether p(z|c) and q(z|x,c) have densities; without them there is no ELBO.
    has_densities = True
    #: Whether the response follows from the context alone, without a latent.
    is_deterministic = False
    #: Whether anything but the context encoder looks at an utterance's vector.
    encodes_responses = True
    decoder: ResponseDecoder | ConditionedDecoder

    def __init__(self, config: DialogModelConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary, config.word_embedding, padding_idx=0)
        if config.topics:
            self.topic_embedding = nn.Embedding(config.topics + 1, config.topic_embedding)
        if self.encodes_responses or not config.sentence_encoder:
            self.utterance_encoder = UtteranceEncoder(
                config.word_embedding, config.utterance_hidden
            )
        if config.sentence_encoder and config.tunes_sentence_encoder:
            self.sentence_encoder = SentenceEncoder(**config.sentence_encoder)
        self.context_encoder = ContextEncoder(config.said, config.context_hidden)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise every module, the parts of a module before itself.

        transformers' own walk passes over modules that hold their parameters in parts alone.
        """
        for module in reversed(list(self.modules())):
            self._init_weights(module)

    def _init_weights(self, module: nn.Module) -> None:
        initialise_as_zhao(module)

    @abstractmethod
    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Draw from p(z|c), (B, C) and noise (B, S, P) to (B, S, D)."""

    @abstractmethod
    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw J latents a pair from q(z|x,c)."""

    def inference_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of q(z|x,c) alone, which Algorithm 1's inner steps train."""
        return []

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of a pretrained encoder that is tuned, which learn more slowly."""
        return list(self.sentence_encoder.parameters()) if self.holds_sentence_encoder else []

    @property
    def holds_sentence_encoder(self) -> bool:
        """Whether the pretrained encoder is part of the model."""
        return hasattr(self, "sentence_encoder")

    def first_state(self, c: Tensor, z: Tensor) -> Tensor:
        """Return the decoder's state before ``<s>``; leading axes of c and z agree, (..., H)."""
        return self.decoder.first_state(c, z.to(c.dtype))

    def step(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token a row; return logits (R, V) and the next state (R, H)."""
        return self.decoder.step(self.embedding(token), state)

    def encode(
        self,
        batch: DialogBatch,
        of_words: Dropout | None = None,
        of_utterances: Dropout | None = None,
    ) -> Encoded:
        """Encode every distinct utterance once, then the contexts over them.

        Args:
            batch: B pairs.
            of_words: on the words of utterances; contexts that share an utterance share its masks.
            of_utterances: on the utterances of each context, their floors with them.
        """
        if self.encodes_responses or batch.told is None:
            vectors = self.encode_utterances(batch.utterances, batch.lengths, of_words)  # (Q, F)
        else:
            vectors = torch.zeros(len(batch.utterances), 0, device=batch.told.device)
        said = vectors if batch.told is None else self.encode_told(batch.told)
        context = self.context_encoder(
            said, batch.context, batch.floor, batch.context_lengths, of_utterances
        )
        c = self.condition(context, batch.topic, batch.profile)  # (B, C)
        return Encoded(c, vectors[batch.response])

    def encode_told(self, told: Tensor) -> Tensor:
        """Encode ids of the pretrained encoder, (Q, T) to (Q, P); its vectors stay, (Q, P)."""
        return told if told.is_floating_point() else cast(Tensor, self.sentence_encoder(told))

    def encode_utterances(
        self, utterances: Tensor, lengths: Tensor, dropout: Dropout | None = None
    ) -> Tensor:
        """Encode utterances, longest first, (Q, T) and (Q,) to (Q, F)."""
        if dropout is None:
            words, places = torch.unique(utterances, return_inverse=True)
            vectors = self.embedding(words)
        else:  # every token has a mask of its own
            is_token = utterances != 0
            vectors = dropout(self.embedding(utterances[is_token]))  # (N, W)
            places = is_token.flatten().cumsum(0).view_as(utterances) - 1
        return cast(Tensor, self.utterance_encoder(vectors, places, lengths))

    def condition(self, context: Tensor, topic: Tensor, profile: Tensor) -> Tensor:
        """Join the parts of c that this model has, (B, C)."""
        parts = [context]
        if self.config.profile:
            parts.insert(0, profile.to(context.dtype))
        if self.config.topics:
            parts.insert(0, self.topic_embedding(topic))
        return torch.cat(parts, dim=-1)

    def log_p_x(
        self,
        batch: DialogBatch,
        c: Tensor,
        z: Tensor,
        sample: WordSample | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Return log p(x|z,c) summed over tokens after ``<s>``, (B, J).

        Args:
            batch: its responses are scored; its contexts do not matter.
            c: a condition vector for each response, (B, C), or for each latent, (B, J, C).
            z: (B, J, D).
            sample: words over which the softmax is estimated; None for all.
            dropout: on the words that the decoder is told.
        """
        draws = z.shape[1]
        each = c if c.dim() == 3 else c.unsqueeze(1).expand(-1, draws, -1)
        state = self.first_state(each, z)  # (B, J, H)
        told = self.pack_responses(batch, draws, dropout)
        states = self.decoder(told.words, told.places, told.layout, state.flatten(0, 1))
        return self.score_states(states, told, sample)

    def pack_responses(
        self, batch: DialogBatch, draws: int, dropout: Dropout | None = None
    ) -> PackedResponses:
        """Lay out what the decoder is told, and what it is to say, for J draws of each response."""
        layout = PackedLayout.of(
            batch.response_lengths.repeat_interleave(draws), batch.response.device
        )
        ids = batch.utterances[batch.response]  # (B, T)
        given = ids[layout.rows // draws, layout.steps]  # (N,)
        targets = ids[layout.rows // draws, layout.steps + 1]
        distinct, places = torch.unique(given, return_inverse=True)
        words = self.embedding(distinct)  # (M, W)
        if dropout is not None:  # every token has a mask of its own
            words, places = dropout(words[places]), torch.arange(len(given), device=given.device)
        return PackedResponses(layout, words, places, targets, draws)

    def score_states(
        self, states: Tensor, told: PackedResponses, sample: WordSample | None = None
    ) -> Tensor:
        """Sum the log-probabilities of targets over each response, (N, H) to (B, J)."""
        log_p = token_log_probs(states, self.decoder.out, told.targets, sample)  # (N,)
        rows = int(told.layout.batch_sizes[0])
        sums = log_p.new_zeros(rows).index_add(0, told.layout.rows, log_p)
        return sums.view(-1, told.draws)  # (B, J)
