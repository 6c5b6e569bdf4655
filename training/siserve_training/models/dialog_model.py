"""What every dialog model has: encoders of utterances and contexts, and a way to score responses.

The rest of the package (loop, evaluation, export) sees a model through this class: encode, draw
latents from prior and posterior, score a response, step the decoder.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from siserve_training.data.batches import DialogBatch
from siserve_training.models.draws import Encoded
from siserve_training.models.packed_texts import PackedTexts, pack_texts
from siserve_training.models.text_model import TextModel, TextModelConfig
from siserve_training.nets.collaborative import ConditionedDecoder
from siserve_training.nets.dropout import Dropout
from siserve_training.nets.initial import initialise_as_zhao
from siserve_training.nets.output import WordSample, token_log_probs
from siserve_training.nets.recurrent import ContextEncoder, ResponseDecoder, UtteranceEncoder
from siserve_training.nets.sentence import SentenceEncoder

__all__ = ["DialogModel", "DialogModelConfig"]

_PROFILE_SIZE = 8


class DialogModelConfig(TextModelConfig):
    """Sizes of the encoders; the defaults are those of Zhao et al. 2017.

    Attributes:
        utterance_hidden: hidden units of the utterance encoder, per direction.
        context_hidden: hidden units of the context encoder.
        topics: known topics; 0 leaves the topic embedding out.
        topic_embedding: size of a topic's vector.
        profile: whether the condition vector holds the two speakers' profiles.
        sentence_encoder: sizes of a pretrained encoder of context utterances (`SentenceEncoder`)
            in place of the GRU over words; None for the GRU.
        tunes_sentence_encoder: whether the model holds that encoder and trains it; if not, it is
            told vectors.
    """

    def __init__(
        self,
        utterance_hidden: int = 300,
        context_hidden: int = 600,
        topics: int = 0,
        topic_embedding: int = 30,
        profile: bool = False,
        sentence_encoder: dict[str, Any] | None = None,
        tunes_sentence_encoder: bool = False,
        **kwargs: Any,
    ) -> None:
        self.utterance_hidden = utterance_hidden
        self.context_hidden = context_hidden
        self.topics = topics
        self.topic_embedding = topic_embedding
        self.profile = profile
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


class DialogModel(TextModel):
    """Encoders of utterances and contexts; the latents and the decoder are each model's own.

    Args:
        config: the sizes.
    """

    config_class: type[DialogModelConfig] = DialogModelConfig
    main_input_name = "utterances"
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

    def _init_weights(self, module: nn.Module) -> None:
        initialise_as_zhao(module)

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
    ) -> PackedTexts:
        """Lay out what the decoder is told, and what it is to say, for J draws of each response."""
        ids = batch.utterances[batch.response]  # (B, T)
        return pack_texts(ids, batch.response_lengths, self.embedding, draws, dropout)

    def score_states(
        self, states: Tensor, told: PackedTexts, sample: WordSample | None = None
    ) -> Tensor:
        """Sum the log-probabilities of targets over each response, (N, H) to (B, J)."""
        return told.sums(token_log_probs(states, self.decoder.out, told.targets, sample))
