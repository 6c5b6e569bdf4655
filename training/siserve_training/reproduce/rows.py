"""The rows of Table 1: how each system is trained and scored, and what the paper says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

__all__ = ["COLUMNS", "ROWS", "SCALES", "PaperRow", "Row", "Scale", "pretrained_row"]

#: The paper's columns: title and our metric. It names neither NLTK's version nor the treatment of
#: what follows `</s>`; the legacy BLEU and the peers' embedding scores are its likely choice.
COLUMNS = {
    "R": "bleu_recall_legacy",
    "P": "bleu_precision_legacy",
    "F1": "bleu_f1_legacy",
    "A": "bow_average_peer",
    "E": "bow_extrema_peer",
    "G": "bow_greedy_peer",
    "intra-1": "intra_dist_1",
    "intra-2": "intra_dist_2",
    "inter-1": "inter_dist_1",
    "inter-2": "inter_dist_2",
    "L": "length",
}


@dataclass(frozen=True)
class PaperRow:
    """A row as the paper prints it, in the order of the table's columns; None where it has none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Row:
    """One system of the table.

    Attributes:
        name: in files and on the command line.
        title: in the table.
        preset: what it is trained with; the small scale takes its small twin.
        settings: configuration keys on top of the preset.
        evaluation: options of `siserve evaluate` on top of the common ones.
        of: row whose runs this one scores again, "" for runs of its own.
        paper: the paper's rows for it.
        ours: whether it goes beyond the paper.
    """

    name: str
    title: str
    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""
    paper: tuple[PaperRow, ...] = ()
    ours: bool = False

    @property
    def context_encoder(self) -> str:
        """Its pretrained context encoder as hf:NAME, without the folders that lead there."""
        kind, _, folder = str(self.settings.get("context_encoder", "")).partition(":")
        return f"{kind}:{PurePath(folder).name}" if folder else ""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        suffix: of the presets.
        settings: configuration keys for every row.
        evaluation: options of `siserve evaluate` for every row.
    """

    suffix: str
    settings: Mapping[str, Any]
    evaluation: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return what --scale calls it."""
        return "small" if self.suffix else "full"


SCALES = {
    "full": Scale("", {}, {"pairs": 1000, "samples": 100, "ranking-samples": 20}),
    "small": Scale(
        "-small",
        {"passes": 1.0, "eval_every": 400},
        {"pairs": 300, "samples": 50, "ranking-samples": 10},
    ),
}

#: The full preset's prior is semi-implicit: one row shows what that does, the others do without.
_GAUSSIAN_PRIOR = {"prior_noise": 0}
#: Eq. 17 has no bag-of-words term and nothing that holds the KL up; no feature is hidden.
_AS_PRINTED = {
    "bow_weight": 0.0,
    "free_nats": 0.0,
    "beta_max": 1.0,
    "hide_feature_rate": 0.0,
}
#: The recognition network of Zhao et al.
_ONE_LAYER = {"post_hidden": 0}
_MONOTONIC = {**_AS_PRINTED, "schedule": "monotonic"}
_CYCLICAL = {**_AS_PRINTED, "schedule": "cyclical"}
#: CVAE + BOW of Zhao et al.: beta to 1 and the bag-of-words loss, nothing else.
_AS_CVAE_BOW = {"schedule": "monotonic", "beta_max": 1.0, "free_nats": 0.0}
#: 100 dimensions of noise as they come, K rising to 30.
_NOISE_AS_PRINTED = {
    **_GAUSSIAN_PRIOR,
    "noise": 100,
    "noise_gain": 1.0,
    "num_aux": 30,
    "aux_floor": 1,
}

ROWS = (
    Row(
        "hred",
        "HRED",
        "dialog-hred",
        paper=(
            PaperRow(
                "HRED", (0.262, 0.262, 0.262, 0.820, 0.537, 0.832, 0.813, 0.452, 0.081, 0.045, 12.1)
            ),
        ),
    ),
    Row(
        "cvae-monotonic",
        "CVAE + M",
        "dialog-cvae",
        {**_MONOTONIC, **_ONE_LAYER},
        paper=(
            PaperRow(
                "CVAE", (0.295, 0.258, 0.275, 0.836, 0.572, 0.846, 0.803, 0.415, 0.112, 0.102, 12.4)
            ),
            PaperRow(
                "CVAE + M",
                (0.360, 0.245, 0.292, 0.884, 0.634, 0.884, 0.826, 0.459, 0.204, 0.282, 11.2),
            ),
        ),
    ),
    Row(
        "cvae-bow",
        "CVAE + BOW",
        "dialog-cvae-bow",
        paper=(
            PaperRow(
                "CVAE+BOW",
                (0.298, 0.272, 0.284, 0.828, 0.555, 0.840, 0.819, 0.493, 0.107, 0.099, 12.5),
            ),
        ),
    ),
    Row(
        "cvae-co",
        "CVAE + CO",
        "dialog-cvae-co",
        paper=(
            PaperRow(
                "CVAE+CO",
                (0.299, 0.269, 0.283, 0.839, 0.557, 0.855, 0.863, 0.581, 0.111, 0.110, 10.3),
            ),
        ),
    ),
    Row(
        "dialogwae",
        "DialogWAE",
        "dialog-dialogwae",
        paper=(
            PaperRow(
                "DialogWAE",
                (0.394, 0.254, 0.309, 0.897, 0.627, 0.887, 0.713, 0.651, 0.245, 0.413, 15.5),
            ),
        ),
    ),
    Row(
        "dialogwae-gmp",
        "DialogWAE + GMP",
        "dialog-dialogwae-gmp",
        paper=(
            PaperRow(
                "DialogWAE+GMP",
                (0.420, 0.258, 0.319, 0.925, 0.661, 0.894, 0.713, 0.671, 0.333, 0.555, 15.2),
            ),
        ),
    ),
    Row("gmm-cvae", "GMM-CVAE + C", "dialog-gmm-cvae", _CYCLICAL),
    Row(
        "si-cvae-monotonic",
        "SI + M",
        "dialog-si-cvae",
        {**_MONOTONIC, **_ONE_LAYER, **_NOISE_AS_PRINTED},
        paper=(
            PaperRow(
                "SI + M",
                (0.376, 0.248, 0.299, 0.888, 0.640, 0.890, 0.832, 0.461, 0.209, 0.298, 11.5),
            ),
        ),
    ),
    Row(
        "cvae-cyclical",
        "CVAE + C",
        "dialog-cvae",
        {**_CYCLICAL, **_ONE_LAYER},
        paper=(
            PaperRow(
                "CVAE + C",
                (0.440, 0.244, 0.314, 0.937, 0.688, 0.906, 0.876, 0.741, 0.461, 0.72, 12.0),
            ),
        ),
    ),
    Row(
        "si-cvae-cyclical",
        "SI + C",
        "dialog-si-cvae",
        {**_CYCLICAL, **_ONE_LAYER, **_NOISE_AS_PRINTED},
        paper=(
            PaperRow(
                "SI + C",
                (0.441, 0.246, 0.315, 0.937, 0.683, 0.905, 0.888, 0.782, 0.499, 0.77, 12.1),
            ),
        ),
    ),
    Row(
        "si-cvae-bow",
        "SI-CVAE + BOW",
        "dialog-si-cvae",
        {**_AS_CVAE_BOW, **_GAUSSIAN_PRIOR},
        ours=True,
    ),
    Row("cvae", "CVAE, our recipe", "dialog-cvae", ours=True),
    Row("si-cvae", "SI-CVAE, our recipe", "dialog-si-cvae", _GAUSSIAN_PRIOR, ours=True),
    Row(
        "si-cvae-diverse",
        "SI-CVAE, our recipe, diverse selection",
        "dialog-si-cvae",
        evaluation={"diversity": 0.2},
        of="si-cvae",
        ours=True,
    ),
    Row(
        "si-cvae-si-prior",
        "SI-CVAE, our recipe, SI prior",
        "dialog-si-cvae",
        {"prior_noise": 16},
        ours=True,
    ),
)


def pretrained_row(context_encoder: str) -> Row:
    """Make the row of our recipe with a pretrained context encoder, which ROWS cannot name.

    Args:
        context_encoder: hf:DIR.
    """
    return Row(
        "si-cvae-pretrained",
        "SI-CVAE, our recipe, pretrained context encoder",
        "dialog-si-cvae",
        {**_GAUSSIAN_PRIOR, "context_encoder": context_encoder},
        ours=True,
    )
