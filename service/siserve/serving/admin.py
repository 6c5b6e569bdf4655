"""siserve.v1.AdminService: which models are served, told and changed."""

from __future__ import annotations

from siserve.serving.calls import Call
from siserve.serving.dialog_model import DialogModel
from siserve.serving.errors import NotAllowed
from siserve.serving.library import Library
from siserve.v1 import admin_pb2

__all__ = ["AdminServicer"]


class AdminServicer:
    """Answers the calls of the service for callers that may.

    Args:
        library: what is served.
        wants_key: whether a caller needs a key marked admin.
    """

    def __init__(self, library: Library, wants_key: bool) -> None:
        """Serve `library`."""
        self._library = library
        self._wants_key = wants_key

    async def ListModels(
        self, message: admin_pb2.ListModelsRequest, call: Call
    ) -> admin_pb2.ListModelsResponse:
        """List the models that are held."""
        self._check(call)
        told = [self._tell(model) for model in self._library.models.all]
        return admin_pb2.ListModelsResponse(models=told)

    async def LoadModel(
        self, message: admin_pb2.LoadModelRequest, call: Call
    ) -> admin_pb2.LoadModelResponse:
        """Put a bundle of the watched folder into service."""
        self._check(call)
        return admin_pb2.LoadModelResponse(
            model=self._tell(await self._library.load(message.bundle))
        )

    async def RollBackModel(
        self, message: admin_pb2.RollBackModelRequest, call: Call
    ) -> admin_pb2.RollBackModelResponse:
        """Let an earlier model answer again."""
        self._check(call)
        return admin_pb2.RollBackModelResponse(
            model=self._tell(self._library.roll_back(message.name))
        )

    def _check(self, call: Call) -> None:
        if self._wants_key and not call.caller.is_admin:
            raise NotAllowed("this call wants a key that is marked admin")

    def _tell(self, model: DialogModel) -> admin_pb2.ServedModel:
        models, manifest = self._library.models, model.bundle.manifest
        return admin_pb2.ServedModel(
            name=manifest.name,
            version=manifest.version,
            sha256=manifest.sha256,
            is_current=model in models.current,
            is_default=model is models.default,
        )
