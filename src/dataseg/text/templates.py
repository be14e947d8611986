"""Sets of prompt templates."""

from __future__ import annotations

from typing import Literal

from dataseg.structures import UserError

TemplateSet = Literal["plain", "article", "vild", "clip"]


_SIZES = ("small", "medium", "large")


_TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "article": ("a {}",),
    "vild": (  # the 14 of ViLD (arXiv 2104.13921), which Detic and fc-clip use as well
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        *(f"a photo of a {size} {{}}." for size in _SIZES),
        *(f"This is a photo of a {size} {{}}." for size in _SIZES),
        *(f"There is a {size} {{}} in the scene." for size in _SIZES),
    ),
}


def templates_of(name: TemplateSet) -> tuple[str, ...]:
    """Sentences with one ``{}`` each: the bare name, the name with its article, ViLD's 14, or CLIP's 80 for ImageNet.

    Raises:
        UserError: no such set.
    """
    if name == "clip":
        import open_clip  # takes seconds to import: only where it is needed

        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    if name not in _TEMPLATES:
        raise UserError(f"no prompt templates {name!r}: choose one of {[*_TEMPLATES, 'clip']}")
    return _TEMPLATES[name]
