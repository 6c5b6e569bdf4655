"""Where models come from while a server runs: a watched folder, a call, and the one before.

A bundle is copied aside, checked whole, loaded, and answers a request of ours before it answers one
of a user; then it takes its name over in one step. What is refused is named in the log and changes
nothing. The copy is needed because onnxruntime maps weights into memory: a file that shrank under
it would end the process.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from siserve.bundle.errors import BundleError, SiserveError
from siserve.bundle.manifest import parse_manifest
from siserve.bundle.tensors import MANIFEST_FILE
from siserve.serving.dialog_model import DialogModel
from siserve.serving.errors import NotPossible, UnknownModel
from siserve.serving.loading import load_model
from siserve.serving.memory import give_back
from siserve.serving.metrics import Metrics
from siserve.serving.models import Models, embedded_bundle
from siserve.serving.options import ServerOptions

__all__ = ["Library", "open_library"]

_log = logging.getLogger(__name__)

Load = Callable[[Path], DialogModel]
Signature = tuple[tuple[str, int, int, int], ...]


class Library:
    """Puts models into service.

    Args:
        models: what is served.
        load: makes a started model of a bundle's folder.
        folder: the watched folder; None = there is none.
        metrics: told of what is loaded and refused.
        seen: folders of bundles that need no look before they change.

    Attributes:
        on_change: told when other models answer than before.
    """

    def __init__(
        self,
        models: Models,
        load: Load,
        folder: Path | None,
        metrics: Metrics,
        seen: dict[str, Signature],
    ) -> None:
        """Watch nothing before watch()."""
        self.models = models
        self._load = load
        self._folder = folder
        self._metrics = metrics
        self._seen = seen
        self.on_change: Callable[[], None] = lambda: None
        self._one_at_a_time = asyncio.Lock()

    async def load(self, bundle: str) -> DialogModel:
        """Put a bundle of the watched folder into service.

        Args:
            bundle: name of its folder.

        Raises:
            UnknownModel: if there is no such folder.
            NotPossible: if the bundle is refused; the message says why.
        """
        if self._folder is None or bundle not in _bundles(self._folder):
            raise UnknownModel("bundle: the watched folder holds no bundle of that name")
        async with self._one_at_a_time:
            self._seen[bundle] = _sign(self._folder / bundle)
            try:
                return await self._take(self._folder / bundle)
            except SiserveError as error:
                raise NotPossible(f"the bundle is refused: {error}") from None

    def roll_back(self, name: str) -> DialogModel:
        """Let the model before the current one answer for a name; see Models.roll_back."""
        model = self.models.roll_back(name)
        self._changed()
        _log.info("rolled back to %s", model.full_name)
        return model

    async def watch(self, seconds: float) -> None:
        """Look at the folder again and again; new and changed bundles are put into service."""
        while self._folder is not None and seconds:
            await asyncio.sleep(seconds)
            try:
                await self._look(self._folder)
            except OSError as error:
                _log.error("the watched folder cannot be read (%s)", error.strerror)

    async def _look(self, folder: Path) -> None:
        for name in await asyncio.to_thread(_bundles, folder):
            signature = _sign(folder / name)
            if self._seen.get(name) == signature:
                continue
            async with self._one_at_a_time:
                self._seen[name] = signature
                try:
                    await self._take(folder / name)
                except SiserveError as error:
                    _log.error("bundle %s is refused, what is served stays: %s", name, error)

    async def _take(self, path: Path) -> DialogModel:
        try:
            digest = _digest(path)
            if self.models.has(digest):  # as it is, or moved
                return next(m for m in self.models.current if m.bundle.manifest.sha256 == digest)
            model = await asyncio.to_thread(_load_copy, self._load, path)
        except SiserveError:
            self._metrics.load_ended("refused")
            raise
        retired = list(self.models.put(model))
        self._metrics.load_ended("served")
        self._changed()
        _log.info("%s is served now", model.full_name)
        await asyncio.to_thread(_retire, retired)
        return model

    def _changed(self) -> None:
        self._metrics.models_changed(self.models)
        self.on_change()


def _retire(models: list[DialogModel]) -> None:
    """Stop models that nobody finds any more and let go of what they held."""
    while models:
        models.pop().stop()
    give_back()


def open_library(options: ServerOptions, metrics: Metrics) -> Library:
    """Load every bundle that a server is started with.

    Raises:
        SiserveError: if a bundle that was named cannot be served, or if the watched folder holds
            none that can.
    """

    def load(path: Path) -> DialogModel:
        observer = metrics.engine_observer()
        model = load_model(path, options.placement, options.limits, options.engine, observer)
        model.start()
        return model

    seen: dict[str, Signature] = {}
    paths = options.models
    if not paths and options.model_dir is None:
        paths = (embedded_bundle(),)
    models = [load(path) for path in paths]
    if options.model_dir is not None:
        models += _load_folder(options.model_dir, load, seen, needed=not models)
    library = Library(Models(models), load, options.model_dir, metrics, seen)
    metrics.models_changed(library.models)
    give_back()  # what loading took beside what is kept
    return library


def _load_folder(
    folder: Path, load: Load, seen: dict[str, Signature], needed: bool
) -> list[DialogModel]:
    """Load the bundles of the watched folder, of each name the one that was made last first."""
    try:
        names = _bundles(folder)
    except OSError as error:
        raise SiserveError(
            f"--model-dir {folder} cannot be read ({error.strerror}); check its rights"
        ) from None
    models = []
    for name in names:
        seen[name] = _sign(folder / name)
        try:
            models.append(_load_copy(load, folder / name))
        except SiserveError as error:
            _log.error("bundle %s is refused: %s", name, error)
    if needed and not models:
        raise SiserveError(f"--model-dir {folder} holds no bundle that can be served; put one in")
    newest_first = sorted(models, key=lambda m: m.bundle.manifest.created, reverse=True)
    kept: dict[str, DialogModel] = {}
    for model in newest_first:
        if kept.setdefault(model.full_name, model) is not model:
            model.stop()
    return sorted(kept.values(), key=lambda model: model.name)


def _load_copy(load: Load, path: Path) -> DialogModel:
    try:
        scratch = tempfile.TemporaryDirectory(prefix="siserve-", ignore_cleanup_errors=True)
    except OSError as error:  # none is there, full, read-only
        raise BundleError(
            f"{path.name} cannot be copied ({error.strerror}); give a folder that can be written "
            "as TMPDIR"
        ) from None
    with scratch:
        copy = Path(scratch.name) / path.name
        try:
            shutil.copytree(path, copy, symlinks=True)
        except (OSError, shutil.Error) as error:
            raise BundleError(f"{path.name} cannot be copied ({_reason(error)})") from None
        return load(copy)


def _reason(error: OSError) -> str:
    """Say why a tree cannot be copied; shutil gathers (source, target, why) of each file."""
    first = error.args[0] if error.args else ""
    if isinstance(error, shutil.Error) and isinstance(first, list) and first:
        return str(first[0][2]).partition("] ")[2].partition(":")[0] or "some file cannot be read"
    return error.strerror or "some of its files cannot be read"


def _bundles(folder: Path) -> list[str]:
    """Names of the folders that hold a manifest; hidden ones are still being written."""
    return sorted(
        path.parent.name
        for path in folder.glob(f"*/{MANIFEST_FILE}")
        if not path.parent.name.startswith(".")
    )


def _sign(path: Path) -> Signature:
    """Sizes and times of a bundle's files: equal while nobody writes there."""
    signs = []
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        try:
            status = file.stat()
        except OSError:
            continue
        signs.append((file.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(signs)


def _digest(path: Path) -> str:
    try:
        return parse_manifest((path / MANIFEST_FILE).read_bytes()).sha256
    except OSError as error:
        raise BundleError(f"{MANIFEST_FILE} cannot be read ({error.strerror})") from None
