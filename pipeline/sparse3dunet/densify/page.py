"""The report of a densification: one HTML page that needs no network and no scripts."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from sparse3dunet.colors import class_color
from sparse3dunet.densify.estimate import EXPLANATION, Estimate, interval_text
from sparse3dunet.densify.suggest import Suggestion
from sparse3dunet.models.checkpoints import replace_file
from sparse3dunet.report.figures import CaseView, confidence_bar, course, doubt_panels, surface
from sparse3dunet.report.pictures import UNLABELED
from sparse3dunet.training.engines import score_text

_NO_SIDES = "The file does not tell the patient's sides."
SURFACES = 12
"""Classes of a case whose surfaces are shown: the largest ones."""
_STYLE = """
:root { --text: #1c1c22; --ground: #ffffff; --soft: #5b5b66; --line: #d9d9e0; --box: #f4f4f7; --link: #0058a3;
  --note: #fff4d6; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8ec; --ground: #17171b; --soft: #a9a9b4; --line: #3a3a44; --box: #222228; --link: #7ab8f5;
    --note: #43370f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif;
  color: var(--text); background: var(--ground); overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .7rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
h4 { font-size: .95rem; margin: 1rem 0 .3rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
.note { padding: .5rem .8rem; background: var(--note); border-radius: 6px; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; min-width: 5.5rem; max-width: 18rem; overflow-wrap: anywhere; }
.numbers td, .numbers thead th + th { text-align: right; }
.numbers td { white-space: nowrap; }
.words td { min-width: 8rem; }
.total th, .total td { font-weight: 600; border-bottom: none; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px;
  box-shadow: 0 0 0 1px var(--line); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0; padding: 0; list-style: none;
  font-size: .92rem; }
.bar { white-space: nowrap; }
.bar img { width: 7rem; height: .8rem; vertical-align: -.1rem;
  box-shadow: 0 0 0 1px var(--line); }
figure { margin: 0; }
figcaption { font-size: .85rem; color: var(--soft); }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .5rem; }
.panels img { display: block; width: 100%; max-height: 26rem; object-fit: contain; background: #000;
  border-radius: 4px; }
.surfaces { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 46%), 1fr)); gap: .8rem; }
.surfaces img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.surfaces figcaption { text-align: center; }
.course { max-width: 38rem; background: #fff; border-radius: 4px; padding: .3rem; }
.course img { display: block; width: 100%; }
pre { overflow-x: auto; max-width: 100%; margin: .5rem 0; padding: .7rem; background: var(--box); border-radius: 6px;
  font-size: .85rem; overflow-wrap: normal; }
code { font-size: .9em; }
summary { cursor: pointer; margin-top: 1.2rem; font-weight: 600; }
@media (max-width: 640px) {
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  body { font-size: 15px; }
  th, td { padding: .3rem .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; color: #000; background: #fff; }
  .panels, .surfaces, tr, h4 { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""


@dataclass(frozen=True)
class CaseSection:
    """What the report tells of a case.

    Attributes:
        name: of the case.
        ml: volume by class name, without background.
        mean_confidence: 0 to 1; None where unknown.
        suggestions: slices to annotate next, the best first.
        files: relative paths by what they are: segmentation, confidence, template.
        view: for pictures; None for none.
    """

    name: str
    ml: Mapping[str, float]
    mean_confidence: float | None
    suggestions: Sequence[Suggestion]
    files: Mapping[str, str]
    view: CaseView | None


@dataclass(frozen=True)
class Report:
    """What the page tells.

    Attributes:
        title: of what was densified.
        class_names: by class number, background first.
        cases: in the order of the page.
        quality: by held-out slices.
        curves: by part of the training, as for :func:`~sparse3dunet.report.figures.course`.
        choices: what was chosen, its value, and why.
        command: that was typed.
        settings: YAML.
        versions: of what the results depend on.
        notes: what else a reader must know, as that the run was stopped early.
    """

    title: str
    class_names: Sequence[str]
    cases: Sequence[CaseSection]
    quality: Estimate
    curves: Mapping[str, Sequence[Mapping[str, float | None]]] = field(default_factory=dict)
    choices: Sequence[tuple[str, str, str]] = ()
    command: str = ""
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(path: str | Path, report: Report) -> None:
    """Write the page, whole or not at all; its folder must exist."""
    text = page(report)
    replace_file(Path(path), lambda draft: draft.write_text(text, encoding="utf-8", errors="replace"))


def page(report: Report) -> str:
    """The page as HTML."""
    title = escape(report.title)
    cases = "".join(_case(number, case, report.class_names) for number, case in enumerate(report.cases))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: segmentation report</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{_summary(report)}</p>
{"".join(f'<p class="note">{escape(note)}</p>' for note in (*_warnings(report), *report.notes))}
</header>
<main>
{_quality(report.quality)}
{_volumes(report)}
{cases}
{_curves(report)}
{_making(report)}
</main>
</body>
</html>
"""


# ------------------------------------------------------------ what it all comes to


def _summary(report: Report) -> str:
    quality = report.quality
    classes = _count(len(report.class_names) - 1, "class", "classes")
    counts = f"{_count(len(report.cases), 'volume', 'volumes')}, {classes} besides the background."
    if quality.mean_dice is None:
        return f"{counts} Quality: not evaluable."
    between = f" ({interval_text(quality.low, quality.high)} in 9 of 10 cases)" if quality.low is not None else ""
    return f"{counts} Mean Dice to expect: <strong>{score_text(quality.mean_dice)}</strong>{between}."


def _warnings(report: Report) -> list[str]:
    return [f"This result is likely to be useless: {text}" for text in report.quality.warnings]


def _quality(quality: Estimate) -> str:
    if not quality.classes:
        text = f"<p>Not evaluable: {escape(quality.reason or 'no slices were held out')}.</p>"
        return _section("How good it is likely to be", text, "quality")
    rows = []
    for number, entry in enumerate(quality.classes):
        scores = [score_text(entry.dice), interval_text(entry.low, entry.high), score_text(entry.iou)]
        scores.append(score_text(entry.held_out_dice))
        rows.append([_swatch(number) + escape(entry.name), str(entry.slices), *scores])
    means = [score_text(quality.mean_dice), interval_text(quality.low, quality.high), score_text(quality.mean_iou)]
    rows.append(["mean", "", *means, score_text(quality.mean_held_out_dice)])
    table = _table(["class", "n", "Dice", "90 % interval", "IoU", "held-out Dice"], rows, total=True)
    text = f"""<p>Dice and IoU are what to expect where nothing is annotated; 1 is perfect. They come from
{_count(quality.slices, "annotated slice", "annotated slices")} of {_count(quality.volumes, "volume", "volumes")}.
{escape(EXPLANATION)} Held-out Dice is the score on held-out voxels, which lie farther from annotation. n is the number
of annotated slices that show the class. Mean Dice is without the background, mean IoU over all classes.</p>"""
    return _section("How good it is likely to be", table + text, "quality")


def _volumes(report: Report) -> str:
    names = report.class_names[1:]
    headings = ["volume", *(_swatch(number) + escape(name) for number, name in enumerate(names, 1)), "mean confidence"]
    rows = []
    for number, case in enumerate(report.cases):
        amounts = [_ml_text(case.ml.get(name)) for name in names]
        confidence = "-" if case.mean_confidence is None else f"{case.mean_confidence:.3f}"
        rows.append([f'<a href="#case-{number}">{escape(case.name)}</a>', *amounts, confidence])
    return _section("Volumes in ml", _table(headings, rows), "volumes")


def _ml_text(ml: float | None) -> str:
    if ml is None:
        return "-"
    return f"{ml:.0f}" if ml >= 1000 else f"{ml:.4g}"


# ------------------------------------------------------------ a case


def _case(number: int, case: CaseSection, class_names: Sequence[str]) -> str:
    pictures = "" if case.view is None else _pictures(case.view) + _surfaces(case.view)
    links = [f'<a href="{escape(quote(os.fsencode(path)))}">{escape(what)}</a>' for what, path in case.files.items()]
    files = f'<p class="files">Files: {", ".join(links)}</p>' if links else ""
    content = files + _legend(class_names) * bool(pictures) + pictures + _suggestions(case)
    return _section(escape(case.name), content, f"case-{number}")


def _legend(class_names: Sequence[str]) -> str:
    entries = [_swatch(number) + escape(name) for number, name in enumerate(class_names) if number]
    entries.append(f'<i class="swatch" style="background:{UNLABELED}"></i>unlabeled')
    bar = f'<span class="bar">0 {_image(confidence_bar(), "colours of the confidence, from 0 to 1")} 1</span>'
    items = "".join(f"<li>{entry}</li>" for entry in entries)
    return f'<ul class="legend" aria-label="Colours">{items}<li>confidence: {bar}</li></ul>'


def _pictures(view: CaseView) -> str:
    point, planes = doubt_panels(view)
    place = ", ".join(f"{found.plane} {found.number}" for found in planes)
    parts = []
    for found in planes:
        heading = f"{found.plane} slice {found.number}"
        figures = "".join(
            _figure(png, f"{heading} of {view.name}: {kind}", escape(kind)) for kind, png in found.panels.items()
        )
        parts.append(f'<h4>{found.plane.capitalize()}, slice {found.number}</h4><div class="panels">{figures}</div>')
    if view.annotated[point]:
        where = "All voxels are annotated; the planes"
    else:
        where = "The planes cross where, in and near the foreground, the confidence is lowest:"
    sides = "The patient's right is on the right, anterior or superior is up." if view.sides else _NO_SIDES
    return f"""<h3>Where it is most in doubt</h3>
<p>{where} {place} (slices count from 0). {sides}</p>
{"".join(parts)}"""


def _surfaces(view: CaseView) -> str:
    counts = [np.count_nonzero(view.segmentation == number) for number in range(len(view.class_names))]
    present = [number for number in range(1, len(view.class_names)) if counts[number]]
    shown = sorted(sorted(present, key=lambda number: -counts[number])[:SURFACES])
    figures = []
    for number in shown:
        name, png = view.class_names[number], surface(view, number)
        if png is not None:
            figures.append(_figure(png, f"surface of {name} in {view.name}", _swatch(number) + escape(name)))
    absent = [name for number, name in enumerate(view.class_names) if number and not counts[number]]
    remarks = [f"No voxel is {escape(' or '.join(absent))}."] if absent else []
    if len(shown) < len(present):
        remarks.append(f"The {len(shown)} largest of {len(present)} classes are shown.")
    text = f"<p>Seen from the patient's left front. {' '.join(remarks)}</p>" if figures else f"<p>{remarks[0]}</p>"
    return f'<h3>Surfaces</h3>{text}<div class="surfaces">{"".join(figures)}</div>' if figures or remarks else ""


def _suggestions(case: CaseSection) -> str:
    heading = "<h3>Annotate these next</h3>"
    if not case.suggestions:
        return f"{heading}<p>No slice is suggested.</p>"
    rows = [
        [
            escape(entry.plane),
            str(entry.index),
            f"{entry.position:.1f}",
            "none" if entry.distance is None else f"{entry.distance:.1f}",
            f"{entry.doubt:.3f}",
            f"{entry.benefit:.2f}",
        ]
        for entry in case.suggestions
    ]
    headings = ["plane", "slice (from 0)", "position (mm)", "nearest annotated (mm)", "doubt", "benefit"]
    template = case.files.get("template")
    cure = f" <code>{escape(template)}</code> has the prediction on these slices, to be corrected." if template else ""
    return f"""{heading}{_table(headings, rows)}
<p>Benefit is relative to the best slice; doubt is the mean of 1 - confidence over what is foreground or in
doubt.{cure}</p>"""


# ------------------------------------------------------------ how it was made


def _curves(report: Report) -> str:
    if not any(report.curves.values()):
        return ""
    parts = "; ".join(report.curves)
    alt = f"training loss and Dice on held-out slices over the time; parts: {parts}"
    return _section("Training", f'<div class="course">{_image(course(report.curves), alt)}</div>', "training")


def _making(report: Report) -> str:
    parts = []
    if report.choices:
        rows = [[escape(cell) for cell in choice] for choice in report.choices]
        parts.append("<h3>What was chosen</h3>" + _table(["what", "value", "why"], rows, "words"))
    if report.command:
        parts.append(f'<h3>Command</h3><pre tabindex="0">{escape(report.command)}</pre>')
    if report.versions:
        rows = [[escape(name), escape(version)] for name, version in report.versions.items()]
        parts.append("<h3>Versions</h3>" + _table(["what", "version"], rows, "words"))
    if report.settings:
        settings = escape(report.settings)
        parts.append(f'<details><summary>All settings</summary><pre tabindex="0">{settings}</pre></details>')
    return _section("How it was made", "".join(parts), "making") if parts else ""


# ------------------------------------------------------------ pieces of HTML; text must be escaped already


def _section(heading: str, content: str, name: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{heading}</h2>{content}</section>\n'


def _table(headings: Iterable[str], rows: Sequence[Sequence[str]], kind: str = "numbers", total: bool = False) -> str:
    """A table that scrolls within its own box; the first cell of a row is its heading.

    Args:
        headings: of the columns.
        rows: of cells.
        kind: numbers or words, for the look.
        total: whether the last row sums the others up.
    """
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = ""
    for row in rows:
        cells = f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:])
        body += f'<tr class="total">{cells}</tr>' if total and row is rows[-1] else f"<tr>{cells}</tr>"
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _swatch(number: int) -> str:
    """A little square in a class's colour; nothing for the background, which has none."""
    return f'<i class="swatch" style="background:{class_color(number)}"></i>' if number else ""


def _figure(png: bytes, alt: str, caption: str) -> str:
    return f"<figure>{_image(png, alt)}<figcaption>{caption}</figcaption></figure>"


def _image(png: bytes, alt: str) -> str:
    """An image; `alt` is plain text."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
