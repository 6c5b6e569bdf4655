"""What `siserve export` does once its options are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from siserve.bundle.manifest import Manifest, Sampling
from siserve.bundle.tensors import MANIFEST_FILE

from siserve_training.errors import ConfigError
from siserve_training.export.again import export_again
from siserve_training.export.trial import int8_verdict

__all__ = ["export_folder", "told_of_export"]


def export_folder(
    folder: Path,
    out: Path,
    name: str,
    version: str,
    dtype: str | None,
    checkpoint: str | None,
    sampling: Mapping[str, float | int],
    model_card: str,
    data: Path | None = None,
) -> Manifest:
    """Export a run, or a bundle again, whichever a folder holds.

    Args:
        folder: of the run or the bundle.
        out: folder to make.
        name: of the model; "" is the default or what the bundle has.
        version: of the model, in the same way.
        dtype: "float32" or "float16", for a run alone; None is float32.
        checkpoint: "best" or "last", for a run alone; None is best.
        sampling: default options by name; what is not named has its default, or the bundle's.
        model_card: Markdown; "" writes a plain card, or keeps the bundle's.
        data: corpus whose valid split the 8-bit decoder is tried on; None for its own responses.

    Raises:
        ConfigError: if an option cannot be meant.
    """
    top_p = sampling.get("top_p", 1.0)
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p must lie above 0 and at most at 1, got {top_p}")
    if dtype not in (None, "float32", "float16"):
        raise ConfigError(f"--dtype must be float32 or float16, got {dtype!r}")
    if checkpoint not in (None, "best", "last"):
        raise ConfigError(f"--checkpoint must be best or last, got {checkpoint!r}")
    if not (folder / MANIFEST_FILE).is_file():
        from siserve_training.export.run import export_run  # torch, which a bundle needs not

        return export_run(
            folder,
            out,
            name=name,
            version=version or "1",
            dtype="float16" if dtype == "float16" else "float32",
            checkpoint=checkpoint or "best",
            sampling=Sampling.model_validate(sampling),
            model_card=model_card,
            data=data,
        )
    for flag, value in (("--dtype", dtype), ("--checkpoint", checkpoint)):
        if value is not None:
            raise ConfigError(
                f"{flag} {value} is for a run; {folder} holds a bundle, whose weights stay as they "
                "are stored: leave it out"
            )
    return export_again(
        folder,
        out,
        name=name,
        version=version,
        sampling=sampling,
        model_card=model_card,
        data=data,
    )


def told_of_export(manifest: Manifest, out: Path) -> list[str]:
    """Tell how an export ended, a line for each thing."""
    size = sum(file.bytes for file in manifest.files.values())
    return [
        int8_verdict(manifest),
        f"exported {manifest.full_name}, {size / 1e6:.1f} MB; next: siserve serve --model {out}",
    ]
