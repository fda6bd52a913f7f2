"""Reading YAML 1.2, and nothing that a person may not have meant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from edge_eval_lib.errors import UserError, shown

LARGEST_FILE = 1_000_000  # bytes; params/ has 20,000 at most
MOST_VALUES = 100_000  # with every alias written out
LONGEST_INTEGER = 40  # digits; more is too large for any field, and int() refuses 5,000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
NUMBER = re.compile(
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan"
)
TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "null", "bool", "int", "float", "timestamp", "merge", "value")
}


def read_yaml(path: Path) -> Any:
    """Read a YAML file: mappings, lists, text, finite numbers, booleans and None (if empty).

    Only what YAML 1.2 takes for a number is one (not 010, 0x10, 1:30 or 1_000), a date is text,
    `no` and `on` are words, and a repeated field is an error. UserError with the line or the field
    of what cannot be meant.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes: it is not such a file.")
        node = _composed(path.read_text(encoding="utf-8"))
        return None if node is None else _Reader(path).value(node, "")
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise UserError(
            f"{path} is not valid YAML{line}: {problem or 'it cannot be read'}."
        ) from error
    except RecursionError:
        raise UserError(f"{path} is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: it is not text in UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=32)
def _composed(text: str) -> Node | None:
    """Parse a file's content, once: params/ is read many times in a process."""
    return YAML(typ="safe", pure=True).compose(text)


@lru_cache
def _read_once(path: Path, _changed_ns: int) -> Any:
    return read_yaml(path)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of things by name; UserError if it holds something else."""
    content = _read_once(path, path.stat().st_mtime_ns)
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path} should hold a mapping of names, but it is {shown(content)}.")
    return content or {}


class _Reader:
    """Makes values of the nodes of one file, every alias written out."""

    def __init__(self, path: Path) -> None:
        self.path, self.values = path, 0
        self.inside: list[Node] = []

    def value(self, node: Node, field: str) -> Any:
        """Return what a node holds; `field` is where it stands."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise _problem(node, f"it would hold more than {MOST_VALUES:,} values")
        if any(node is outer for outer in self.inside):
            raise _problem(node, "a value refers to itself")
        if isinstance(node, ScalarNode):
            return self.scalar(node, field)
        self.inside.append(node)
        if isinstance(node, MappingNode):
            value: Any = {k: self.value(v, _below(field, k)) for k, v in self.pairs(node, field)}
        else:
            value = [self.value(v, _below(field, str(n))) for n, v in enumerate(node.value)]
        self.inside.pop()
        return value

    def pairs(self, node: MappingNode, field: str) -> Iterator[tuple[Any, Node]]:
        """Yield a mapping's keys and what stands there, what it merges (`<<`) first."""
        seen = set()
        for key, inside in node.value:
            if not isinstance(key, ScalarNode):
                raise _problem(key, "a field's name must be a word")
            if key.value in seen:
                raise _problem(key, f"the field {shown(key.value)} appears twice")
            seen.add(key.value)
            if key.value == "<<":
                for merged in [inside] if isinstance(inside, MappingNode) else inside.value:
                    yield from self.pairs(merged, field)
        yield from (
            (self.scalar(key, field), inside) for key, inside in node.value if key.value != "<<"
        )

    def scalar(self, node: ScalarNode, field: str) -> Any:
        """Return a word or a number; UserError for what no field may hold."""
        if node.tag not in TAGS:
            raise _problem(node, f"a value is of the type {node.tag}, which no field takes")
        value: Any = node.value
        if not node.style:  # not in quotes
            if value in WORDS:
                value = WORDS[value]
            elif INTEGER.fullmatch(value):
                value = int(value[:LONGEST_INTEGER])
            elif NUMBER.fullmatch(value):
                value = float(re.sub(r"\.(inf|nan)", r"\1", value))
        wrong = None
        if isinstance(value, float) and not math.isfinite(value):
            wrong = "it should be a finite number"
        elif isinstance(value, int) and abs(value) >= 2**63:
            wrong = "it should be a number of at most 18 digits"
        elif isinstance(value, str) and CONTROL.search(value):
            wrong = "it should hold no control characters"
        if wrong:
            raise UserError(f"{self.path}: {shown_field(field)} is {shown(value)}, but {wrong}.")
        return value


def _below(field: str, key: Any) -> str:
    return f"{field}.{key}" if field else str(key)


def _problem(node: Node, text: str) -> MarkedYAMLError:
    return MarkedYAMLError(problem=text, problem_mark=node.start_mark)


def shown_field(name: str) -> str:
    """Return a field's name as a sentence shows it."""
    return f"the field {name!r}" if len(name) <= 80 else f"the field {name[:77]!r}..."
