"""Colours of the classes, in pictures and in files that store them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

CLASS_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Colours of the classes 1, 2, ..., repeated where there are more (Okabe and Ito, for all kinds of colour vision)."""


class Labels(dict[int, str]):
    """Names by the value in a label map, background first, with the colours that the annotation gave them.

    Attributes:
        colors: colours by value, as #rrggbb; a value that is not in it has its default.
    """

    def __init__(self, names: Mapping[int, str], colors: Mapping[int, str] | None = None) -> None:
        super().__init__(names)
        self.colors = {value: color for value, color in (colors or {}).items() if value in names}


def class_color(number: int) -> str:
    """Return the colour of a class from 1 on, as #rrggbb."""
    return CLASS_COLORS[(number - 1) % len(CLASS_COLORS)]


def is_color(text: object) -> bool:
    """Return whether something is a colour as #rrggbb."""
    return isinstance(text, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", text) is not None


def color_text(rgb: Sequence[float]) -> str:
    """Return red, green and blue, 0 to 255, as #rrggbb; numbers beyond are cut off."""
    red, green, blue = (min(max(int(rgb[i]), 0), 255) for i in range(3))
    return f"#{red:02x}{green:02x}{blue:02x}"


def colors_of(class_names: Mapping[int, str]) -> list[tuple[int, int, int]]:
    """Return red, green and blue, 0 to 255, of each class: its own, if `class_names` has it; black for the first."""
    own = getattr(class_names, "colors", {})
    texts = ["#000000", *(own.get(value) or class_color(n) for n, value in enumerate(list(class_names)[1:], 1))]
    return [(int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)) for text in texts[: len(class_names)]]
