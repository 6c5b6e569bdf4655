"""Who may come in: the caller of each call, by key or by certificate."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from siserve.bundle.errors import UsageError
from siserve.serving.errors import RequestError
from siserve.serving.keys import Caller, Keyring
from siserve.serving.status import code_of

__all__ = [
    "Gate",
    "Metadata",
    "ReflectionGuard",
    "check_exposure",
    "is_loopback",
    "reflection_handler",
]

_REFLECTION = "/grpc.reflection."
Metadata = Iterable[tuple[str, str | bytes]]


class Gate:
    """Names the caller of a call, or refuses it.

    Args:
        keyring: the keys; None = no key is asked for.
        asks_certificates: whether clients need a certificate.
    """

    def __init__(self, keyring: Keyring | None, asks_certificates: bool = False) -> None:
        """Keep the keys."""
        self._keyring = keyring
        self._asks_certificates = asks_certificates

    @property
    def reads_certificates(self) -> bool:
        """Whether callers are named by their certificates."""
        return self._keyring is None and self._asks_certificates

    def identify(
        self, metadata: Metadata, certificate: Mapping[str, Iterable[bytes]] | None = None
    ) -> Caller:
        """Say who calls.

        Args:
            metadata: headers of the call, names in lower case.
            certificate: what gRPC tells about the client's certificate.

        Raises:
            Unauthenticated: if a key is asked for and there is no valid one.
        """
        if self._keyring is not None:
            return self._keyring.identify(
                value for name, value in metadata if name == "authorization"
            )
        names = (certificate or {}).get("x509_common_name", ())
        return Caller(next(iter(names), b"").decode(errors="replace"))


class ReflectionGuard(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Keeps the reflection service behind the same gate; it stands before that service."""

    def __init__(self, gate: Gate) -> None:
        """Guard by `gate`."""
        self._gate = gate

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return a handler that refuses calls which the gate refuses; None for all others."""
        if handler_call_details.method.startswith(_REFLECTION):
            try:
                self._gate.identify(handler_call_details.invocation_metadata)
            except RequestError as error:
                return grpc.stream_stream_rpc_method_handler(_refusal(error))
        return None


def reflection_handler(names: Iterable[str]) -> grpc.GenericRpcHandler[Any, Any]:
    """Make the handler of the reflection service.

    What the library adds itself is asked before all others, so that no guard could stand before it.

    Args:
        names: of the services that are told.
    """
    servicer = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]
    answer = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": answer}
    )


def _refusal(error: RequestError) -> Any:
    async def refuse(requests: Any, context: Any) -> None:
        await context.abort(code_of(error), str(error))

    return refuse


def check_exposure(option: str, host: str, has_tls: bool, insecure: bool) -> None:
    """Refuse to listen in the open beyond this machine unless it is asked for by name.

    Raises:
        UsageError: saying what to give.
    """
    if has_tls or insecure or is_loopback(host):
        return
    raise UsageError(
        f"{option} {host} is open to others, without TLS; give --tls-cert and --tls-key, "
        "listen on 127.0.0.1, or say --insecure if something before the server encrypts"
    )


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
