"""Write the chart's README table and values.schema.json from the comments of values.yaml.

A comment above a key is its description. A line `# @schema {...}` adds JSON Schema to what the
default tells; an object is closed unless that line opens it.

Example: python k8s/values_docs.py k8s/siserve
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

BEGIN, END = "<!-- values: made by make chart -->", "<!-- end of values -->"
_TAG = "@schema "
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}


class CommentError(Exception):
    """A comment of values.yaml that nothing can be made from."""


@dataclass(frozen=True)
class Value:
    """One key of values.yaml.

    Attributes:
        path: names from the root to the key.
        text: its description; empty for an object whose keys describe themselves.
        schema: JSON Schema of its `@schema` line.
        default: its value.
        is_leaf: whether the table has a row for it, and not for what lies inside.
    """

    path: tuple[str, ...]
    text: str
    schema: dict[str, Any]
    default: Any
    is_leaf: bool


def read_values(text: str) -> list[Value]:
    """Read every described key, in the order of the file.

    Raises:
        CommentError: if a key has no description, or an `@schema` line is no JSON.
    """
    node = yaml.compose(text, yaml.SafeLoader)
    return list(_walk(node, yaml.safe_load(text), (), text.splitlines()))


def _walk(
    node: yaml.MappingNode, default: dict[str, Any], path: tuple[str, ...], lines: list[str]
) -> Iterator[Value]:
    for key, child in node.value:
        here = (*path, key.value)
        described, schema = _comment(lines, key.start_mark.line, here)
        value = default[key.value]
        is_group = isinstance(value, dict) and bool(value) and not described
        if not is_group and not described:
            raise CommentError(f"values.yaml: {'.'.join(here)} has no comment above it")
        yield Value(here, described, schema, value, not is_group)
        if is_group:
            yield from _walk(child, value, here, lines)


def _comment(lines: list[str], key_line: int, path: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    first = key_line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    written = [line.strip().lstrip("#").strip() for line in lines[first:key_line]]
    tags = [line.removeprefix(_TAG) for line in written if line.startswith(_TAG)]
    try:
        schema = {name: part for tag in tags for name, part in json.loads(tag).items()}
    except ValueError as error:
        raise CommentError(f"values.yaml: {'.'.join(path)}: @schema is no JSON: {error}") from None
    return " ".join(line for line in written if not line.startswith(_TAG)), schema


def make_schema(values: list[Value]) -> dict[str, Any]:
    """Make the schema of the whole file: every object that no tag opens is closed."""
    # Helm hands `global` to every chart, whatever its values are.
    root: dict[str, Any] = _closed({"global": {"type": "object"}})
    for value in values:
        parent = root
        for name in value.path[:-1]:
            parent = parent["properties"][name]
        own = _closed({}) if not value.is_leaf else {"type": _type_of(value.default)}
        described = {"description": value.text} if value.text else {}
        parent["properties"][value.path[-1]] = own | described | value.schema
    return {"$schema": "http://json-schema.org/draft-07/schema#", **root}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _type_of(default: Any) -> str:
    return _TYPES.get(type(default), "object")


def make_table(values: list[Value]) -> str:
    """Make a Markdown table with a row for each value that can be set."""
    rows = [
        f"| `{'.'.join(value.path)}` | {_cell(value.text)} | `{_cell(json.dumps(value.default))}` |"
        for value in values
        if value.is_leaf
    ]
    return "\n".join(["| value | is | default |", "| --- | --- | --- |", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def rendered(chart: Path) -> dict[Path, str]:
    """Make the text of README.md and values.schema.json of a chart.

    Raises:
        CommentError: if values.yaml or the README's markers are not as they should be.
    """
    values = read_values((chart / "values.yaml").read_text(encoding="utf-8"))
    readme = (chart / "README.md").read_text(encoding="utf-8")
    block = f"{BEGIN}\n{make_table(values)}\n{END}"
    readme, number = re.subn(
        f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, readme, flags=re.DOTALL
    )
    if number != 1:
        raise CommentError(f"README.md: expected {BEGIN} and {END} once, got {number}")
    schema = json.dumps(make_schema(values), indent=2, ensure_ascii=False) + "\n"
    return {chart / "README.md": readme, chart / "values.schema.json": schema}


def main(arguments: list[str]) -> int:
    """Write both files of the chart whose folder is given."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "values.yaml").is_file():
        print("values_docs: expected the folder of a chart; see its first lines", file=sys.stderr)
        return 2
    try:
        files = rendered(Path(arguments[0]))
    except (CommentError, OSError) as error:
        print(f"values_docs: {error}", file=sys.stderr)
        return 1
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
