"""XML files of labelling tools."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from dataseg.io.paths import read_bytes
from dataseg.structures import UserError


def read_xml(path: Path) -> Element:
    """The root element. A document type declaration, as no labelling tool writes, is refused: it may define entities.

    Raises:
        UserError: missing, malformed, or with such a declaration.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*declaration: object) -> None:
        raise UserError(f"{path}: has a document type declaration (<!DOCTYPE ...>), which is not read: take it out")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path), True)
    except (OSError, expat.ExpatError) as error:
        raise UserError(f"{path}: not a readable XML file ({error})") from error
    return builder.close()
