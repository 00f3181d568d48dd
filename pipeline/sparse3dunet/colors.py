"""Colours of the classes, in pictures and in files that store them."""

CLASS_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Colours of the classes 1, 2, ..., repeated where there are more (Okabe and Ito, for all kinds of colour vision)."""


def class_color(number: int) -> str:
    """Return the colour of a class from 1 on, as #rrggbb."""
    return CLASS_COLORS[(number - 1) % len(CLASS_COLORS)]
