"""The models of a server, found by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from siserve.bundle.errors import BundleError, UsageError
from siserve.bundle.tensors import MANIFEST_FILE
from siserve.serving.dialog_model import DialogModel
from siserve.serving.errors import UnknownModel

__all__ = ["Models", "embedded_bundle"]


class Models:
    """Served models by name and by name@version; the first one is the default."""

    def __init__(self, models: Sequence[DialogModel]) -> None:
        """Index the models.

        Raises:
            UsageError: if two of them have one name and version, or if there is none.
        """
        if not models:
            raise UsageError("there is no model to serve; name a bundle with --model")
        self.all = tuple(models)
        self._by_name: dict[str, DialogModel] = {"": models[0]}
        for model in models:
            full_name = model.bundle.manifest.full_name
            if full_name in self._by_name:
                raise UsageError(f"--model names {full_name} twice; leave one of them out")
            self._by_name[full_name] = model
            self._by_name.setdefault(model.name, model)

    @property
    def default(self) -> DialogModel:
        """The model that answers a request that names none."""
        return self.all[0]

    def find(self, name: str) -> DialogModel:
        """Return the model that a request names.

        Raises:
            UnknownModel: if there is none of that name.
        """
        model = self._by_name.get(name)
        if model is None:
            served = ", ".join(model.bundle.manifest.full_name for model in self.all)
            raise UnknownModel(f"model: no such model here; served: {served}")
        return model


def embedded_bundle() -> Path:
    """Find the bundle that the package carries.

    Raises:
        BundleError: if this installation carries none.
    """
    folder = Path(str(resources.files("siserve"))) / "models"
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}"))
    if len(found) != 1:
        raise BundleError(
            f"this installation carries {len(found)} embedded models, expected 1; "
            "name the folder of a bundle instead"
        )
    return found[0]
