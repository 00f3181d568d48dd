"""The page in a real browser: paint by mouse, densify, correct, reload, crash, export."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.annotate.client import Command

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
PATIENCE = 240_000  # ms; machines that draw without a GPU, beside other work, are slow
SHAPE = (56, 64, 48)  # RAS
RADII = (19, 23, 16)
POSITION = """([axis, voxel]) => {
  const nv = viewer.nv, [a, b] = [0.3, 0.7];
  const tile = nv.screenSlices.findIndex((slice) => slice.axCorSag === 2 - axis);
  const [left, top, width, height] = nv.screenSlices[tile].leftTopWidthHeight;
  const at = (x, y) => nv.screenXY2TextureFrac(left + x * width, top + y * height, tile, false);
  const [p, q] = [at(a, a), at(b, b)], goal = nv.vox2frac(voxel);
  const [across, up] = [0, 1, 2].filter((other) => other !== axis);
  const along = (i) => a + ((b - a) * (goal[i] - p[i])) / (q[i] - p[i]);
  const box = nv.canvas.getBoundingClientRect(), dpr = nv.uiData.dpr || 1;
  return [box.left + (left + along(across) * width) / dpr, box.top + (top + along(up) * height) / dpr];
}"""


def phantom() -> np.ndarray:
    """A bright ellipsoid on a dark ground, with noise, in RAS order; True within."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij"))
    return (np.square(grid / np.array(RADII)[:, None, None, None]).sum(0)) < 1


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """The phantom in a file with other axes: superior, left, anterior."""
    inside = phantom()
    image = inside * 100 + np.random.default_rng(0).normal(0, 12, SHAPE) + 50
    affine = np.array([[0, -2.0, 0, 40], [0, 0, 2.0, -60], [2.5, 0, 0, 10], [0, 0, 0, 1]])
    to_file = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.io_orientation(affine))
    stored = nib.orientations.apply_orientation(image.astype(np.float32), to_file)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "phantom.nii.gz")
    return tmp_path / "phantom.nii.gz"


class Page:
    """What a person does on the page."""

    def __init__(self, page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        page.goto(url)
        self.wait_ready()

    def wait_ready(self) -> None:
        self.page.wait_for_selector("body[data-ready]", state="attached")

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def drag(self, axis: int, voxels: list[list[float]], disturbed: bool = False) -> None:
        """Move the mouse with its button pressed over voxels of a plane; turn its wheel and press keys meanwhile."""
        places = [self.page.evaluate(POSITION, [axis, voxel]) for voxel in voxels]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place)
            if disturbed:
                self.page.mouse.wheel(0, 120)
                self.press("ArrowUp")
        self.page.mouse.up()
        self.wait_saved()

    def until(self, condition: str) -> None:
        """Wait for a condition in JavaScript; Playwright's own way is refused by the page's security policy."""
        for _ in range(PATIENCE // 250):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(250)
        raise AssertionError(f"not within {PATIENCE / 1000} s: {condition}; {self.page.inner_text('aside')}")

    def wait_saved(self) -> None:
        self.page.wait_for_timeout(300)
        self.until("document.getElementById('saved').textContent === 'all saved'")

    def painted(self) -> np.ndarray:
        """What the page shows as painted, in RAS order."""
        return self._array("Array.from(viewer.nv.drawBitmap)")

    def stored(self) -> np.ndarray:
        """What the server has."""
        return self._array(
            "fetch('api/painted').then((r) => r.arrayBuffer()).then((b) => Array.from(new Uint8Array(b)))"
        )

    def finished(self) -> list[list[int]]:
        """The finished slices by axis in RAS order."""
        return self.page.evaluate("fetch('api/state').then((r) => r.json()).then((state) => state.finished)")

    def _array(self, script: str) -> np.ndarray:
        return np.array(self.page.evaluate(script), np.uint8).reshape(SHAPE, order="F")

    def screenshot(self, name: str) -> bytes:
        self.page.wait_for_timeout(1000)
        folder = os.environ.get("SPARSE3DUNET_SCREENSHOTS")
        return self.page.screenshot(path=f"{folder}/{name}.png" if folder else None)


def outline(axis: int) -> list[list[float]]:
    """Voxels around the ellipsoid on the middle slice of an axis."""
    middle = [n // 2 for n in SHAPE]
    first, second = (other for other in range(3) if other != axis)
    voxels = []
    for step in range(49):
        voxel = [float(i) for i in middle]
        voxel[first] = (SHAPE[first] - 1) / 2 + (RADII[first] - 1) * math.cos(2 * math.pi * step / 48)
        voxel[second] = (SHAPE[second] - 1) / 2 + (RADII[second] - 1) * math.sin(2 * math.pi * step / 48)
        voxels.append([round(i) for i in voxel])
    return voxels


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def test_annotate_in_the_browser(scan, tmp_path, browser):
    out = tmp_path / "out"
    command = Command(scan, out, "--minutes", "0.4")
    try:
        page = Page(browser.new_page(viewport={"width": 1100, "height": 700}), command.url)
        drawn = paint_three_slices(page)
        densify(page)
        drawn = correct(page, drawn)
        page.page.reload()
        page.wait_ready()
        assert np.array_equal(page.painted(), drawn), "reloading loses strokes"
        assert not page.page.is_hidden("#found"), "reloading loses the segmentation"
        assert page.errors == []
        assert {re.match(r"\w+://[^/]*/[^/]*/", url)[0] for url in page.requests if ":" in url[:6]} == {command.url}
        page.page.close()

        command.end(signal.SIGKILL)
        command = Command(scan, out, "--minutes", "0.4")
        page = Page(browser.new_page(viewport={"width": 1100, "height": 700}), command.url)
        assert np.array_equal(page.painted(), drawn), "a crash loses strokes"
        page.page.click("#export")
        page.until("document.getElementById('exported').textContent !== ''")
        check_export(scan, out / "phantom_annotation.nii.gz", page, drawn)
    finally:
        command.end()


def paint_three_slices(page: Page) -> np.ndarray:
    page.press("g")  # fill
    for axis in (2, 1, 0):
        page.page.evaluate("([axis, index]) => viewer.goTo(axis, index)", [axis, SHAPE[axis] // 2])
        page.drag(axis, outline(axis))
        page.press("f")
        page.wait_saved()
    drawn = page.painted()
    assert np.array_equal(drawn, page.stored()), "what is shown is not what is kept"
    assert set(np.unique(drawn)) == {0, 2}
    inside = phantom()
    for axis, middle in enumerate(n // 2 for n in SHAPE):
        assert dice(drawn.take(middle, axis) == 2, inside.take(middle, axis)) > 0.9, f"axis {axis}"
    assert page.finished() == [[n // 2] for n in SHAPE]
    page.screenshot("painted")
    return drawn


def densify(page: Page) -> None:
    page.press("d")
    page.page.wait_for_selector("body[data-found]", state="attached")
    with_overlay = page.screenshot("preview")
    page.press("o")
    assert page.screenshot("no_overlay") != with_overlay, "the segmentation is not seen"
    page.press("o")
    page.press("p")  # doubt
    page.screenshot("doubt")
    page.press("p")
    page.until("/^Done in|error/m.test(document.getElementById('run').textContent)")
    page.until("document.body.dataset.found.startsWith('result')")
    page.screenshot("result")
    assert "error" not in page.page.inner_text("#run")
    version = page.page.evaluate("document.body.dataset.found.split(' ')[1]")
    address = f"api/prediction.nii?version={version}"
    script = f"fetch('{address}').then((r) => r.arrayBuffer()).then((b) => Array.from(new Uint8Array(b, 352)))"
    found = np.array(page.page.evaluate(script), np.uint8).reshape(SHAPE, order="F")
    assert dice(found == 1, phantom()) > 0.9


def correct(page: Page, drawn: np.ndarray) -> np.ndarray:
    """Go to the suggested slice, take over the segmentation, erase a part of it; one stroke too many is undone."""
    page.press("n")
    page.press("c")
    page.wait_saved()
    accepted = page.painted()
    assert (accepted > 0).sum() > (drawn > 0).sum()
    assert np.array_equal(accepted[drawn > 0], drawn[drawn > 0]), "taking over changes what was painted"
    page.press("e")
    axis = int(page.page.evaluate("document.querySelector('#slices tr.active').id.slice(-1)"))
    index = page.page.evaluate("viewer.voxel()")[axis]
    voxel = [index if other == axis else n // 2 for other, n in enumerate(SHAPE)]
    across = next(other for other in range(3) if other != axis)
    beside = [[v + step * (i == across) for i, v in enumerate(voxel)] for step in range(-6, 7, 2)]
    page.drag(axis, beside, disturbed=True)
    corrected = page.painted()
    assert np.array_equal(page.stored(), corrected), "a stroke is lost"
    assert 0 < (corrected != accepted).sum() <= 5 * 18
    assert (corrected[corrected != accepted] == 0).all()
    page.press("b")
    page.drag(axis, [[v + 4 * (i != axis) for i, v in enumerate(place)] for place in beside])
    assert (page.painted() != corrected).any()
    page.press("u")
    page.wait_saved()
    assert np.array_equal(page.painted(), corrected), "undo"
    assert np.array_equal(page.stored(), corrected)
    page.press("f")
    page.wait_saved()
    page.screenshot("corrected")
    return corrected


def check_export(scan: Path, path: Path, page: Page, drawn: np.ndarray) -> None:
    exported, image = nib.load(path), nib.load(scan)
    assert exported.shape == image.shape
    assert np.array_equal(exported.affine, image.affine)
    finished = page.finished()
    assert sum(map(len, finished)) == 4
    expected = np.where(drawn > 0, drawn - 1, 255).astype(np.uint8)
    for axis, indices in enumerate(finished):
        for index in indices:
            plane = np.moveaxis(expected, axis, 0)[index]
            plane[plane == 255] = 0
    in_ras = nib.as_closest_canonical(exported)
    assert np.array_equal(np.asarray(in_ras.dataobj), expected), "the export is not what was drawn"
