"""The systems that can be trained: one file a method, named here once.

A method's file defines METHOD. Files are imported only when a method is asked for, so that names
cost nothing, and graphs can be made where there is no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from siserve_training.errors import ConfigError

if TYPE_CHECKING:
    from siserve_training.export.model import GraphEmitter
    from siserve_training.methods.method import Method

__all__ = ["LM_METHODS", "METHODS", "METHODS_OF", "Place", "load_graphs", "load_method"]

_METHODS = "siserve_training.methods"
_EXPORT = "siserve_training.export"


@dataclass(frozen=True)
class Place:
    """Where a method stands.

    Attributes:
        module: defines METHOD, how it is trained.
        graphs: module that defines `graphs`, how it is exported.
    """

    module: str
    graphs: str


#: Methods of dialog.
METHODS = {
    "si-cvae": Place(f"{_METHODS}.si_cvae", f"{_EXPORT}.cvae"),
    "cvae": Place(f"{_METHODS}.cvae", f"{_EXPORT}.cvae"),
    "cvae-bow": Place(f"{_METHODS}.cvae", f"{_EXPORT}.cvae"),
    "cvae-co": Place(f"{_METHODS}.cvae_co", f"{_EXPORT}.cvae_co"),
    "hred": Place(f"{_METHODS}.hred", f"{_EXPORT}.hred"),
    "gmm-cvae": Place(f"{_METHODS}.gmm_cvae", f"{_EXPORT}.cvae"),
    "dialogwae": Place(f"{_METHODS}.dialogwae", f"{_EXPORT}.dialogwae"),
    "dialogwae-gmp": Place(f"{_METHODS}.dialogwae_gmp", f"{_EXPORT}.dialogwae"),
}
#: Methods of language modelling.
LM_METHODS = {
    "si-vae": Place(f"{_METHODS}.si_vae", f"{_EXPORT}.language"),
    "vae": Place(f"{_METHODS}.vae", f"{_EXPORT}.language"),
    "gmm-vae": Place(f"{_METHODS}.gmm_vae", f"{_EXPORT}.language"),
    "sa-vae": Place(f"{_METHODS}.sa_vae", f"{_EXPORT}.language"),
}
#: By task, the default method first; no name stands in two tasks.
METHODS_OF = {"dialog": METHODS, "lm": LM_METHODS}


def load_method(name: str) -> Method:
    """Return how a method is trained.

    Raises:
        ConfigError: if there is none of that name.
    """
    method: Method = import_module(_place(name).module).METHOD
    return method


def load_graphs(name: str) -> GraphEmitter:
    """Return how a method's graphs are made.

    Raises:
        ConfigError: if there is none of that name.
    """
    emitter: GraphEmitter = import_module(_place(name).graphs).graphs
    return emitter


def _place(name: str) -> Place:
    known = {known: place for methods in METHODS_OF.values() for known, place in methods.items()}
    if name not in known:
        raise ConfigError(f"method must be one of {', '.join(known)}, got {name!r}")
    return known[name]
