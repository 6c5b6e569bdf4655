"""From the message of a request to a request that keeps every limit, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from siserve.bundle.manifest import Manifest
from siserve.serving.errors import InvalidRequest, NotPossible
from siserve.v1.dialog_pb2 import GenerateResponsesRequest, ScoreResponsesRequest, Utterance

__all__ = [
    "DEFAULT_N",
    "Dialog",
    "GenerationRequest",
    "RequestLimits",
    "Turn",
    "check_dialog",
    "check_request",
    "check_size",
    "num_bytes",
    "within",
]

DEFAULT_N = 5
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 10.0


@dataclass(frozen=True)
class RequestLimits:
    """What a request may hold at most; sizes in bytes of UTF-8."""

    max_responses: int = 64
    max_turns: int = 64
    max_text_bytes: int = 16 << 10
    max_name_bytes: int = 256
    max_tokens: int = 4096
    max_score_samples: int = 6400

    def __post_init__(self) -> None:
        """Refuse limits under which no request could pass."""
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def counts(self) -> dict[str, int]:
        """Most entries of every repeated field of a request."""
        return {"context": self.max_turns, "responses": self.max_responses}

    def tokens_of(self, manifest: Manifest) -> int:
        """Longest response of a model: what it was trained for, within the server's own limit."""
        return min(self.max_tokens, manifest.limits.response_tokens)


class Turn(NamedTuple):
    """One turn of a dialog."""

    speaker: str
    text: str


class Dialog(NamedTuple):
    """The dialog of a request.

    Attributes:
        turns: so far, oldest first.
        responder: speaker of the responses.
        topic: id of the topic, 0 = unknown.
    """

    turns: tuple[Turn, ...]
    responder: str
    topic: int = 0


class GenerationRequest(NamedTuple):
    """A request that keeps every limit; options that it left out are filled in.

    Attributes:
        n: number of responses.
        seed: key of all noise; None = draw one.
        diversity: 0 = as drawn; above it, up to 1 = chosen among more candidates.
    """

    dialog: Dialog
    n: int
    seed: int | None
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    diversity: float = 0.0


def check_request(
    message: GenerateResponsesRequest, manifest: Manifest, limits: RequestLimits
) -> GenerationRequest:
    """Check every field of a request and fill in what it leaves out.

    Raises:
        InvalidRequest: naming the first field that breaks a limit.
    """
    n = _number(message, "n", min(DEFAULT_N, limits.max_responses), 1, limits.max_responses)
    dialog = check_dialog(message, manifest, limits)
    defaults, most_tokens = manifest.sampling, limits.tokens_of(manifest)
    return GenerationRequest(
        dialog=dialog,
        n=n,
        seed=message.seed if message.HasField("seed") else None,
        temperature=_temperature(message, defaults.temperature),
        top_k=_number(message, "top_k", defaults.top_k, 0, manifest.sizes.vocabulary),
        top_p=_top_p(message, defaults.top_p),
        max_tokens=_number(
            message, "max_tokens", min(defaults.max_tokens, most_tokens), 1, most_tokens
        ),
        diversity=_diversity(message),
    )


def check_dialog(
    message: GenerateResponsesRequest | ScoreResponsesRequest,
    manifest: Manifest,
    limits: RequestLimits,
) -> Dialog:
    """Check the dialog of a request and the names in it.

    Raises:
        InvalidRequest: naming the first field that breaks a limit.
        NotPossible: if a language model is given a context.
    """
    turns: tuple[Turn, ...] = ()
    if manifest.task != "lm":
        turns = _check_context(message.context, limits)
    elif message.context:
        raise NotPossible(
            f"model {manifest.name} is of task lm: it says sentences, not responses; "
            "send no context"
        )
    responder, topic = message.responder, message.topic
    for name, value in (("responder", responder), ("topic", topic), ("model", message.model)):
        if value:
            check_size(name, value, limits.max_name_bytes)
    return Dialog(
        turns=turns,
        responder=responder or (other_speaker(turns) if turns else ""),
        topic=_topic_id(topic, manifest.features.topics),
    )


def other_speaker(turns: Sequence[Turn]) -> str:
    """Name who spoke last among those who did not speak the last turn.

    In a dialog with one speaker so far the other one has no name yet: a name that no turn has.
    """
    last = turns[-1].speaker
    return next((t.speaker for t in reversed(turns) if t.speaker != last), f"not {last}")


def _check_context(context: Sequence[Utterance], limits: RequestLimits) -> tuple[Turn, ...]:
    """Return the turns of a dialog that keeps the limits."""
    num_turns = len(context)
    if not num_turns:
        raise InvalidRequest("context", "is empty; send at least one turn")
    if num_turns > limits.max_turns:
        raise InvalidRequest(
            "context",
            f"has {num_turns} turns, at most {limits.max_turns} are taken; send the last ones",
        )
    turns, total = [], 0
    for index, utterance in enumerate(context):
        speaker, text = turn = Turn(utterance.speaker, utterance.text)
        if 4 * len(speaker) > limits.max_name_bytes:  # its name is written only if need be
            check_size(f"context[{index}].speaker", speaker, limits.max_name_bytes)
        total += num_bytes(text)
        if total > limits.max_text_bytes:
            raise InvalidRequest(
                f"context[{index}].text",
                f"brings the text to more than {limits.max_text_bytes} bytes; send less of it",
            )
        if not text or text.isspace():
            raise InvalidRequest(f"context[{index}].text", "is empty; leave such a turn out")
        turns.append(turn)
    return tuple(turns)


def check_size(field: str, value: str, max_bytes: int) -> None:
    """Check the length of a text in UTF-8.

    Raises:
        InvalidRequest: naming the field, if it is longer.
    """
    size = num_bytes(value)
    if size > max_bytes:
        raise InvalidRequest(field, f"has {size} bytes, at most {max_bytes} are taken")


def num_bytes(text: str) -> int:
    """Count bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _number(
    message: GenerateResponsesRequest, field: str, default: int, low: int, high: int
) -> int:
    return within(field, getattr(message, field) if message.HasField(field) else default, low, high)


def within(field: str, value: int, low: int, high: int) -> int:
    """Check a number.

    Raises:
        InvalidRequest: naming the field, if it lies outside.
    """
    if not low <= value <= high:
        raise InvalidRequest(field, f"must be from {low} to {high}, got {value}")
    return value


def _temperature(message: GenerateResponsesRequest, default: float) -> float:
    value = message.temperature if message.HasField("temperature") else default
    if value == 0 or MIN_TEMPERATURE <= round(value, 6) <= MAX_TEMPERATURE:  # a float32 on the wire
        return value
    raise InvalidRequest(
        "temperature",
        f"must be 0 or from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, got {value:g}",
    )


def _top_p(message: GenerateResponsesRequest, default: float) -> float:
    value = message.top_p if message.HasField("top_p") else default
    if math.isnan(value) or not 0 < value <= 1:
        raise InvalidRequest("top_p", f"must be above 0 and at most 1, got {value:g}")
    return value


def _diversity(message: GenerateResponsesRequest) -> float:
    value = message.diversity
    if not 0 <= value <= 1:  # NaN too
        raise InvalidRequest("diversity", f"must be from 0 to 1, got {value:g}")
    return value


def _topic_id(topic: str, topics: Sequence[str]) -> int:
    if not topic:
        return 0
    if topic in topics:
        return topics.index(topic) + 1
    known = "GetModel lists those it knows" if topics else "this model knows none, leave it empty"
    raise InvalidRequest("topic", f"is none of the model's topics; {known}")
