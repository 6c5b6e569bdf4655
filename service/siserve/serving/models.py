"""The models of a server, found by name, and replaced without a gap."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from siserve.bundle.errors import BundleError, UsageError
from siserve.bundle.tensors import MANIFEST_FILE
from siserve.serving.dialog_model import DialogModel
from siserve.serving.errors import NotPossible, UnknownModel

__all__ = ["Models", "embedded_bundle"]


class Models:
    """Held models by name and by name@version.

    Of each name the current model answers; those before it answer for name@version alone. The first
    name is the default. One thread uses it, so a model that `find` returned is one that accepts
    requests until the caller awaits.
    """

    def __init__(self, models: Sequence[DialogModel]) -> None:
        """Hold models; the first of each name is its current one.

        Raises:
            UsageError: if two of them have one name and version, or if there is none.
        """
        if not models:
            raise UsageError("there is no model to serve; name a bundle with --model")
        self._held: dict[str, list[DialogModel]] = {}
        for model in models:
            full_name = model.full_name
            if full_name in {held.full_name for held in self.all}:
                raise UsageError(f"--model names {full_name} twice; leave one of them out")
            self._held.setdefault(model.name, []).append(model)
        self._keep = {name: max(2, len(held)) for name, held in self._held.items()}

    @property
    def all(self) -> tuple[DialogModel, ...]:
        """Every held model, by name, the current one of each name first."""
        return tuple(model for held in self._held.values() for model in held)

    @property
    def current(self) -> tuple[DialogModel, ...]:
        """The models that answer for their names."""
        return tuple(held[0] for held in self._held.values())

    @property
    def default(self) -> DialogModel:
        """The model that answers a request that names none."""
        return self.current[0]

    def find(self, name: str) -> DialogModel:
        """Return the model that a request names.

        Raises:
            UnknownModel: if there is none of that name.
        """
        if not name:
            return self.default
        if name in self._held:
            return self._held[name][0]
        for model in self.all:
            if model.full_name == name:
                return model
        served = ", ".join(model.full_name for model in self.all)
        raise UnknownModel(f"model: no such model here; served: {served}")

    def put(self, model: DialogModel) -> tuple[DialogModel, ...]:
        """Let a started model answer for its name from now on.

        Returns:
            Those that nothing finds any more: to be stopped when their calls have ended.
        """
        held = [model, *self._held.get(model.name, ())]
        keep = self._keep.setdefault(model.name, 2)
        self._held[model.name] = held[:keep]
        return tuple(held[keep:])

    def has(self, sha256: str) -> bool:
        """Say whether a current model has this digest."""
        return any(model.bundle.manifest.sha256 == sha256 for model in self.current)

    def roll_back(self, name: str) -> DialogModel:
        """Let the model before the current one answer for a name; return it.

        Raises:
            UnknownModel: if there is none of that name.
            NotPossible: if there was none before.
        """
        current = self.find(name)
        held = self._held[current.name]
        if current is not held[0]:
            raise UnknownModel(f"name: {name} is a version; give the name alone")
        if len(held) < 2:
            raise NotPossible(f"{current.full_name} is the only {current.name} that is held")
        held[0], held[1] = held[1], held[0]
        return held[0]


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
