from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class Estimator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ESTIMATOR_UNSPECIFIED: _ClassVar[Estimator]
    ESTIMATOR_IMPORTANCE: _ClassVar[Estimator]
    ESTIMATOR_PRIOR: _ClassVar[Estimator]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
ESTIMATOR_UNSPECIFIED: Estimator
ESTIMATOR_IMPORTANCE: Estimator
ESTIMATOR_PRIOR: Estimator

class Utterance(_message.Message):
    __slots__ = ("speaker", "text")
    SPEAKER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    speaker: str
    text: str
    def __init__(self, speaker: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class GenerateResponsesRequest(_message.Message):
    __slots__ = ("context", "n", "seed", "temperature", "top_k", "top_p", "max_tokens", "responder", "topic", "model", "diversity")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESPONDER_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    context: _containers.RepeatedCompositeFieldContainer[Utterance]
    n: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    responder: str
    topic: str
    model: str
    diversity: float
    def __init__(self, context: _Optional[_Iterable[_Union[Utterance, _Mapping]]] = ..., n: _Optional[int] = ..., seed: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., max_tokens: _Optional[int] = ..., responder: _Optional[str] = ..., topic: _Optional[str] = ..., model: _Optional[str] = ..., diversity: _Optional[float] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("text", "log_prob", "num_tokens", "finish_reason")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    text: str
    log_prob: float
    num_tokens: int
    finish_reason: FinishReason
    def __init__(self, text: _Optional[str] = ..., log_prob: _Optional[float] = ..., num_tokens: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_seconds", "encode_seconds", "decode_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    encode_seconds: float
    decode_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., encode_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ...) -> None: ...

class GenerateResponsesResponse(_message.Message):
    __slots__ = ("responses", "distinct_1", "distinct_2", "seed", "model", "timings")
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_1_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_2_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[Response]
    distinct_1: float
    distinct_2: float
    seed: int
    model: str
    timings: Timings
    def __init__(self, responses: _Optional[_Iterable[_Union[Response, _Mapping]]] = ..., distinct_1: _Optional[float] = ..., distinct_2: _Optional[float] = ..., seed: _Optional[int] = ..., model: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class StreamResponsesRequest(_message.Message):
    __slots__ = ("generate",)
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    generate: GenerateResponsesRequest
    def __init__(self, generate: _Optional[_Union[GenerateResponsesRequest, _Mapping]] = ...) -> None: ...

class StreamedResponse(_message.Message):
    __slots__ = ("index", "response")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    index: int
    response: Response
    def __init__(self, index: _Optional[int] = ..., response: _Optional[_Union[Response, _Mapping]] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ("distinct_1", "distinct_2", "seed", "model", "timings")
    DISTINCT_1_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_2_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    distinct_1: float
    distinct_2: float
    seed: int
    model: str
    timings: Timings
    def __init__(self, distinct_1: _Optional[float] = ..., distinct_2: _Optional[float] = ..., seed: _Optional[int] = ..., model: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class StreamResponsesResponse(_message.Message):
    __slots__ = ("response", "end")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    response: StreamedResponse
    end: StreamEnd
    def __init__(self, response: _Optional[_Union[StreamedResponse, _Mapping]] = ..., end: _Optional[_Union[StreamEnd, _Mapping]] = ...) -> None: ...

class VaryResponseRequest(_message.Message):
    __slots__ = ("generate", "response", "noise_scale")
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCALE_FIELD_NUMBER: _ClassVar[int]
    generate: GenerateResponsesRequest
    response: str
    noise_scale: float
    def __init__(self, generate: _Optional[_Union[GenerateResponsesRequest, _Mapping]] = ..., response: _Optional[str] = ..., noise_scale: _Optional[float] = ...) -> None: ...

class VaryResponseResponse(_message.Message):
    __slots__ = ("variants",)
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    variants: GenerateResponsesResponse
    def __init__(self, variants: _Optional[_Union[GenerateResponsesResponse, _Mapping]] = ...) -> None: ...

class ScoreResponsesRequest(_message.Message):
    __slots__ = ("context", "responses", "num_samples", "num_aux", "seed", "responder", "topic", "model")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_AUX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RESPONDER_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    context: _containers.RepeatedCompositeFieldContainer[Utterance]
    responses: _containers.RepeatedScalarFieldContainer[str]
    num_samples: int
    num_aux: int
    seed: int
    responder: str
    topic: str
    model: str
    def __init__(self, context: _Optional[_Iterable[_Union[Utterance, _Mapping]]] = ..., responses: _Optional[_Iterable[str]] = ..., num_samples: _Optional[int] = ..., num_aux: _Optional[int] = ..., seed: _Optional[int] = ..., responder: _Optional[str] = ..., topic: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("log_prob", "std_error", "num_tokens")
    LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    STD_ERROR_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    log_prob: float
    std_error: float
    num_tokens: int
    def __init__(self, log_prob: _Optional[float] = ..., std_error: _Optional[float] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class ScoreResponsesResponse(_message.Message):
    __slots__ = ("scores", "estimator", "num_samples", "num_aux", "seed", "model", "timings")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_AUX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    estimator: Estimator
    num_samples: int
    num_aux: int
    seed: int
    model: str
    timings: Timings
    def __init__(self, scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., estimator: _Optional[_Union[Estimator, str]] = ..., num_samples: _Optional[int] = ..., num_aux: _Optional[int] = ..., seed: _Optional[int] = ..., model: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RequestLimits(_message.Message):
    __slots__ = ("max_responses", "max_turns", "max_text_bytes", "max_name_bytes", "max_tokens", "max_score_samples")
    MAX_RESPONSES_FIELD_NUMBER: _ClassVar[int]
    MAX_TURNS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_NAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SCORE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    max_responses: int
    max_turns: int
    max_text_bytes: int
    max_name_bytes: int
    max_tokens: int
    max_score_samples: int
    def __init__(self, max_responses: _Optional[int] = ..., max_turns: _Optional[int] = ..., max_text_bytes: _Optional[int] = ..., max_name_bytes: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_score_samples: _Optional[int] = ...) -> None: ...

class ServerLimits(_message.Message):
    __slots__ = ("max_message_bytes", "max_metadata_bytes", "max_streams", "idle_seconds", "handshake_seconds", "max_queue_rows", "max_rows", "oversample", "responses_per_second", "burst_responses", "connection_seconds")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_METADATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HANDSHAKE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    OVERSAMPLE_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BURST_RESPONSES_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_metadata_bytes: int
    max_streams: int
    idle_seconds: float
    handshake_seconds: float
    max_queue_rows: int
    max_rows: int
    oversample: int
    responses_per_second: float
    burst_responses: int
    connection_seconds: float
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_metadata_bytes: _Optional[int] = ..., max_streams: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., handshake_seconds: _Optional[float] = ..., max_queue_rows: _Optional[int] = ..., max_rows: _Optional[int] = ..., oversample: _Optional[int] = ..., responses_per_second: _Optional[float] = ..., burst_responses: _Optional[int] = ..., connection_seconds: _Optional[float] = ...) -> None: ...

class SamplingDefaults(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "max_tokens", "n")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    n: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., max_tokens: _Optional[int] = ..., n: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "version", "method", "created", "sha256", "device", "num_parameters", "vocabulary_size", "context_utterances", "topics", "limits", "defaults", "metrics", "server_limits", "precision")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_UTTERANCES_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SERVER_LIMITS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    method: str
    created: str
    sha256: str
    device: str
    num_parameters: int
    vocabulary_size: int
    context_utterances: int
    topics: _containers.RepeatedScalarFieldContainer[str]
    limits: RequestLimits
    defaults: SamplingDefaults
    metrics: _containers.ScalarMap[str, float]
    server_limits: ServerLimits
    precision: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., method: _Optional[str] = ..., created: _Optional[str] = ..., sha256: _Optional[str] = ..., device: _Optional[str] = ..., num_parameters: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., context_utterances: _Optional[int] = ..., topics: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[RequestLimits, _Mapping]] = ..., defaults: _Optional[_Union[SamplingDefaults, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., server_limits: _Optional[_Union[ServerLimits, _Mapping]] = ..., precision: _Optional[str] = ...) -> None: ...
