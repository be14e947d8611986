"""Objects built from a section of a file that somebody else may have written.

Nothing that the file names is imported: it chooses among listed classes, and their arguments are plain values of the
types that the constructors' signatures say. `dataseg.config.instantiate` is for one's own configurations.
"""

from __future__ import annotations

import importlib
import inspect
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dataseg.structures import UserError

T = TypeVar("T")

LARGEST = 2**16
"""Bound of whole numbers: queries, channels, layers, sides of images. No network of ours comes near it."""

DEEPEST, MOST = 50, 100_000
"""Bounds of a section: how deep its values are nested, and how many there are."""


class _MisfitError(ValueError):
    """A value that does not fit; the message says which."""


@dataclass(frozen=True)
class Registry:
    """The classes that a file may name.

    Attributes:
        classes: by every name that files have for them.
        packages: whose classes are imported when they are named: the user trusts their authors.
    """

    classes: Mapping[str, type]
    packages: tuple[str, ...] = ()

    def build(self, kind: type[T], section: Any, where: str) -> T:
        """What a section describes: ``class_path`` and ``init_args``, or the arguments of ``kind``.

        Args:
            kind: the class, or a base of it.
            section: JSON values.
            where: file and section, for messages.

        Raises:
            UserError: another class, an argument of another name or type, or the class refuses its arguments.
        """
        try:
            require_plain(section)
            built: T = self._object(kind, section, "it")
        except UserError as error:
            raise UserError(f"{where} cannot be built: {error}") from error
        except _MisfitError as error:
            raise UserError(f"{where} cannot be built: {error}. Was it written by another version?") from error
        return built

    def _object(self, kind: type, section: Any, where: str) -> Any:
        if not isinstance(section, Mapping):
            raise _MisfitError(f"{where} must be a mapping, class_path with init_args, not {_shown(section)}")
        chosen, arguments = kind, section
        if "class_path" in section:
            chosen, arguments = self._class(section["class_path"]), section.get("init_args") or {}
            if not isinstance(arguments, Mapping) or section.keys() - {"class_path", "init_args"}:
                raise _MisfitError(f"{where} must have class_path and init_args alone, not {sorted(section)}")
        if not issubclass(chosen, kind) or inspect.isabstract(chosen):
            raise _MisfitError(f"{where} must be a {kind.__name__}, not a {chosen.__name__}")
        parameters = inspect.signature(chosen).parameters
        unknown = sorted(arguments.keys() - parameters.keys())
        if unknown:
            raise _MisfitError(f"{chosen.__name__} has no argument {', '.join(map(_shown, unknown))}")
        hints = get_type_hints(chosen.__init__)
        values = {name: self._value(hints.get(name, Any), value, name) for name, value in arguments.items()}
        try:
            return chosen(**values)
        except UserError:
            raise
        except Exception as error:  # whatever a constructor makes of arguments that do not go together
            raise _MisfitError(f"{chosen.__name__} fails with {type(error).__name__}: {_shown(str(error))}") from error

    def _class(self, name: Any) -> type:
        if not isinstance(name, str):
            raise _MisfitError(f"class_path must be a name, not {_shown(name)}")
        if name in self.classes:
            return self.classes[name]
        package = name.partition(".")[0]
        if package not in self.packages:
            raise UserError(
                f"it is of the class {name[:200]}, which is not of this project. If you trust its author, admit its"
                f" package: dataseg.load(path, packages=({package[:50]!r},)), or --packages on the command line"
            )
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"the class {name} cannot be imported ({error})") from error
        if not isinstance(found, type):
            raise _MisfitError(f"{name} is no class")
        return found

    def _value(self, kind: Any, value: Any, where: str) -> Any:
        """A value of a type; raises `_MisfitError` for one of another."""
        origin, inner = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if origin in (Union, types.UnionType):
            return self._one_of(inner, value, where)
        if origin is Literal and value in inner:
            return value
        if origin in (list, Sequence) and isinstance(value, list):
            return [self._value(inner[0], item, where) for item in value]
        if origin is tuple and isinstance(value, list):
            kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
            if len(kinds) == len(value):
                return tuple(self._value(k, item, where) for k, item in zip(kinds, value, strict=True))
        if origin in (dict, Mapping) and isinstance(value, Mapping):
            return {key: self._value(inner[1], item, where) for key, item in value.items()}
        if kind in (bool, str) and isinstance(value, kind):
            return value
        if kind in (int, float) and isinstance(value, int) and not isinstance(value, bool):
            return kind(value)
        if kind is float and isinstance(value, float):
            return value
        if kind is Path and isinstance(value, str):
            return Path(value)
        if isinstance(kind, type) and kind not in (bool, int, float, str, Path, list, dict, tuple):
            return self._object(kind, value, where)
        raise _MisfitError(f"{where} must be {getattr(kind, '__name__', kind)}, not {_shown(value)}")

    def _one_of(self, kinds: tuple[Any, ...], value: Any, where: str) -> Any:
        if value is None and type(None) in kinds:
            return None
        *others, last = [kind for kind in kinds if kind is not type(None)]
        for kind in others:
            try:
                return self._value(kind, value, where)
            except _MisfitError:
                continue
        return self._value(last, value, where)


def read_plain(path: Path) -> Any:
    """The content of a YAML file that somebody else may have written.

    Raises:
        UserError: unreadable, or as `parse_plain`; names the file.
    """
    try:
        return parse_plain(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error})") from error


def parse_plain(text: str) -> Any:
    """What a YAML text describes.

    Raises:
        UserError: no YAML, or as `require_plain`.
    """
    try:
        content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{type(error).__name__}: {error}") from error
    require_plain(content, largest=math.inf)
    return content


def require_plain(content: Any, largest: float = LARGEST) -> None:
    """Refuse what is more than a modest number of plain values, as a resolved configuration is.

    Args:
        content: of a JSON or YAML file.
        largest: bound of whole numbers.

    Raises:
        UserError: objects, too many values (YAML's references can make few letters many values) or too deep ones,
            numbers that are not finite or beyond the bound.
    """
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MOST or depth > DEEPEST:
            raise UserError(f"it has more than {MOST:,} values, or they are nested more than {DEEPEST} deep")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise UserError(f"keys must be texts, not {_shown(list(value))}")
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and abs(value) > largest:
            raise UserError(f"a whole number is beyond {largest:,}")
        elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"{_shown(value)} is no plain value")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f"{' '.join(text.split())[:200]!r}" if isinstance(value, str) else text[:200]
