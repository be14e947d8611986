"""Annotation files read record by record: a file of several gigabytes takes no more memory than one block of it.

Kept by hand: on a file of Objects365's form ijson (yajl2_c) takes 1.2 to 1.7 times as long and refuses NaN, by which
records are named here.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from dataseg.io.paths import open_stream
from dataseg.io.text_files import encoding_of, not_text
from dataseg.structures import UserError

BLOCK = 1 << 22
"""Characters read at a time."""
MAX_RECORD = 1 << 28
"""A single record or unused entry longer than this many characters is refused."""

_SPACE = re.compile(r"[ \t\n\r]*")
_HEAD = re.compile(r'\{[ \t\n\r]*"[^"\\]*"')
_BATCH = 20_000
_LONGEST_WORD = 16  # "-Infinity" and what else may be cut in two at the end of a block

Advance = Callable[[int], object]
"""Told how many bytes were read since the last call."""


class _Counting(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self._file, self._advance = file, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._advance(len(data))
        return len(data)


class _Scanner:
    """Position in a JSON text of which only the current block is held."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def _fill(self) -> None:
        rest = self._text[self._at :]
        if len(rest) > MAX_RECORD:
            raise ValueError(f"an entry of more than {MAX_RECORD:,} characters")
        more = self._file.read(max(BLOCK, len(rest)))  # doubling keeps long entries from being scanned over and over
        self._text, self._at, self._ended = rest + more, 0, not more

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._fill()

    def take(self, characters: str) -> str:
        """The next character that is no space, which must be one of ``characters``."""
        found = self.peek()
        if not found or found not in characters:
            raise ValueError(f"expected one of {characters!r}, found {found!r}" if found else "it ends too early")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next entry, whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _LONGEST_WORD
                if self._ended or not cut_off:
                    too_early = cut_off and error.pos >= len(self._text.rstrip()) - 1
                    raise ValueError("it ends too early" if too_early else error.msg) from error
            else:
                # a number may go on beyond what was decoded, "1" as "1.5" or "1e5", until something else follows
                ahead = self._text[end : end + _LONGEST_WORD]
                if self._ended or (ahead and ahead[0] in " \t\n\r,:]}") or len(ahead) == _LONGEST_WORD:
                    self._at = end
                    return value
            self._fill()

    def array(self) -> Iterator[list[Any]]:
        """Entries of the array that starts here, in lists.

        Most are decoded a block at a time: where an object ends and one with the same first key as its predecessor
        begins, the block is cut, and if the part before decodes, the cut was right.
        """
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        mark, may_look_alike = "", False
        batch: list[Any] = []
        while True:
            many = self._many(mark) if mark else []
            if many:
                yield [*batch, *many] if batch else many
                batch = []
            may_look_alike |= many is None
            batch.append(self.value())
            end, text = self._at, self._text
            if self.take(",]") == "]":
                yield batch
                return
            self.peek()
            if self._text is text:  # else the block has moved on: next time
                head = _HEAD.match(text, self._at)
                mark = text[end - 1 : head.end()] if head and text[end - 1] == "}" and not may_look_alike else ""
            if len(batch) >= _BATCH:
                yield batch
                batch = []

    def _many(self, mark: str) -> list[Any] | None:
        """All entries up to the last ``mark`` in the block; empty if there is none, None if it does not decode."""
        cut = self._text.rfind(mark, self._at)
        if cut < 0:
            return []
        try:
            found: list[Any] = json.loads(f"[{self._text[self._at : cut + 1]}]")
        except json.JSONDecodeError:
            return None
        self._at = cut + mark.index("{")
        return found


class NoRecordsError(UserError):
    """A readable annotation file lacks a list, or has nothing in it."""


def stream_records(path: Path, key: str, advance: Advance = lambda count: None) -> Iterator[tuple[int, list[Any]]]:
    """Records of one top-level list of an annotation file, whatever stands before it.

    Args:
        advance: told how many bytes were read.

    Yields:
        position of the first record in the list, and the records.

    Raises:
        UserError: unreadable, not JSON, not an object; names the file and the record.
        NoRecordsError: without a list of that name that has records.
    """
    position, where = 0, "at its start"
    seen: list[str] = []
    try:
        with open_stream(path) as raw, io.BufferedReader(_Counting(raw, advance), 1 << 20) as counted:
            scanner = _Scanner(io.TextIOWrapper(counted, encoding=encoding_of(counted.peek(4))))
            for name in _keys(scanner):
                seen.append(name)
                where = f"at {name!r}"
                if scanner.peek() != "[":
                    if name == key:
                        break
                    scanner.value()
                    continue
                position = 0
                for batch in scanner.array():
                    if name == key:
                        yield position, batch
                    position += len(batch)
                    where = f"at {name!r}, near record {position}"
                if name == key:
                    if position:
                        return
                    break
    except UnicodeDecodeError as error:
        raise not_text(path, error) from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        raise UserError(f"{path}: not a readable JSON file: {error} ({where})") from error
    holds = f"its {key!r} holds none" if key in seen else f"it has {', '.join(map(repr, seen)) or 'nothing'} alone"
    raise NoRecordsError(f"{path}: {key!r} must be a list with at least one record; {holds}")


def _keys(scanner: _Scanner) -> Iterator[str]:
    """Names of the top-level object's entries; the caller takes each entry before the next name."""
    if (found := scanner.peek()) != "{":
        what = {"[": "a list", "": "nothing"}.get(found, f"{found!r} at its start")
        raise ValueError(f"it holds {what}; it must hold an object of 'images', 'annotations' and 'categories'")
    scanner.take("{")
    if scanner.peek() == "}":
        return
    more = True
    while more:
        name = scanner.value()
        if not isinstance(name, str):
            raise ValueError("names must be text")
        scanner.take(":")
        yield name
        more = scanner.take(",}") == ","
