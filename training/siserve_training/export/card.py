"""The model card of a bundle whose maker gave none: what is known, in Markdown."""

from __future__ import annotations

import json

from siserve.bundle.manifest import Description

__all__ = ["plain_card"]


def plain_card(description: Description, dtype: str) -> str:
    """Write a card from a bundle's own description."""
    sampling, sizes = description.sampling, description.sizes
    lines = [
        f"# {description.full_name}",
        "",
        f"A `{description.method}` model for the task `{description.task}`, exported by siserve on "
        f"{description.created}.",
        "",
        f"- {sizes.num_parameters:,} parameters stored as {dtype}, {sizes.vocabulary:,} words",
        f"- latent {sizes.latent}, context vector {sizes.context}, decoder state {sizes.state}",
        f"- default sampling: temperature {sampling.temperature:g}, top_k {sampling.top_k}, "
        f"top_p {sampling.top_p:g}, at most {sampling.max_tokens} tokens",
        f"- topics known: {len(description.features.topics)}; speaker profiles: "
        f"{'used' if description.features.profile else 'not used'}",
    ]
    for title, entries in (
        ("Metrics at export", description.metrics),
        ("Provenance", description.provenance),
    ):
        if entries:
            lines += ["", f"## {title}", "", "| name | value |", "| --- | --- |"]
            lines += [f"| {name} | {_cell(value)} |" for name, value in sorted(entries.items())]
    lines += [
        "",
        "Responses repeat what the training corpus holds, its errors and prejudices too. Do not "
        "let them reach people unseen where that would matter.",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
