"""Requests that bring responses of their own: to say them in other words, or to score them."""

from __future__ import annotations

from dataclasses import dataclass

from siserve.bundle.manifest import Manifest
from siserve.bundle.text import Text
from siserve.serving.errors import InvalidRequest
from siserve.serving.flight import Variation
from siserve.serving.requests import Dialog, RequestLimits, check_dialog, check_size, within
from siserve.v1.dialog_pb2 import ScoreResponsesRequest, VaryResponseRequest

__all__ = ["ScoreRequest", "check_score_request", "check_variation"]

DEFAULT_SAMPLES, DEFAULT_AUX, MAX_AUX = 100, 30, 100
MAX_NOISE_SCALE = 4.0


@dataclass(frozen=True)
class ScoreRequest:
    """A request for scores that keeps every limit.

    Attributes:
        responses: ids from <s> to </s> of each.
        num_samples: S.
        num_aux: K.
        seed: key of all noise; None = draw one.
    """

    dialog: Dialog
    responses: tuple[tuple[int, ...], ...]
    num_samples: int
    num_aux: int
    seed: int | None


def check_variation(message: VaryResponseRequest, text: Text, limits: RequestLimits) -> Variation:
    """Check what VaryResponse takes beside a GenerateResponsesRequest.

    Raises:
        InvalidRequest: naming the first field that breaks a limit.
    """
    scale = message.noise_scale if message.HasField("noise_scale") else 1.0
    if not 0 <= scale <= MAX_NOISE_SCALE:  # NaN too
        raise InvalidRequest("noise_scale", f"must be from 0 to {MAX_NOISE_SCALE:g}, got {scale:g}")
    return Variation(_encode("response", message.response, text, limits), scale)


def check_score_request(
    message: ScoreResponsesRequest, manifest: Manifest, text: Text, limits: RequestLimits
) -> ScoreRequest:
    """Check every field of a request and fill in what it leaves out.

    Raises:
        InvalidRequest: naming the first field that breaks a limit.
    """
    dialog = check_dialog(message, manifest, limits)
    count = len(message.responses)
    if not 1 <= count <= limits.max_responses:
        raise InvalidRequest(
            "responses", f"must be from 1 to {limits.max_responses} of them, got {count}"
        )
    asked = message.num_samples if message.HasField("num_samples") else None
    most = max(1, limits.max_score_samples // count)
    samples = min(DEFAULT_SAMPLES, most) if asked is None else asked
    aux = message.num_aux if message.HasField("num_aux") else DEFAULT_AUX
    return ScoreRequest(
        dialog=dialog,
        responses=tuple(
            _encode(f"responses[{number}]", response, text, limits)
            for number, response in enumerate(message.responses)
        ),
        num_samples=within("num_samples", samples, 1, most),
        num_aux=within("num_aux", aux, 0, MAX_AUX),
        seed=message.seed if message.HasField("seed") else None,
    )


def _encode(field: str, response: str, text: Text, limits: RequestLimits) -> tuple[int, ...]:
    """Return ids from <s> to </s>; what the model would have to cut is refused."""
    check_size(field, response, limits.max_text_bytes)
    if not response.strip():
        raise InvalidRequest(field, "is empty; send what was said")
    most = text.max_tokens - 2
    (ids,) = text.encode_utterances([response])
    if len(ids) == text.max_tokens and len(text.split(response)) > most:
        raise InvalidRequest(field, f"has more than the {most} tokens that the model takes")
    return ids
