"""What propagation makes of a volume, kept on disk."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from sparse3dunet.densify import propagated
from sparse3dunet.densify.propagated import Outlook, Propagation, distance_of
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.propagation.calibration import Calibration
from sparse3dunet.propagation.ensemble import Ensemble, Propagated
from tests.conftest import write_nifti
from tests.propagation.scans import nested, on_slices, quick

SHAPE = (18, 16, 12)
IMAGE, LABEL = nested(shape=SHAPE)
WEIGHT = on_slices(SHAPE, [], [], [3, 5, 8])


@pytest.fixture(autouse=True, scope="module")
def few_trees():
    with quick(4):
        yield


@pytest.fixture
def case(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", IMAGE, np.diag([1.0, 1, 2, 1]))
    return ImageCase("a/b", (str(path),))


@pytest.fixture
def fitted(monkeypatch):
    """How often methods are run."""
    runs = []
    fit = Ensemble.fit

    def counted(self, *given):
        runs.append(self)
        return fit(self, *given)

    monkeypatch.setattr(Ensemble, "fit", counted)
    return runs


def propagation(folder, seconds=60.0, cases=1):
    annotation = SimpleNamespace(numbers=LABEL, annotated=WEIGHT > 0)
    return Propagation(folder / "kept", lambda file: annotation, 3, seconds, cases, 0)


def assert_same(first, second):
    np.testing.assert_allclose(first.prob, second.prob, atol=5e-4)
    assert first.prob.dtype == second.prob.dtype
    assert (first.box, first.method) == (second.box, second.method)
    assert (first.held is None) == (second.held is None)
    if first.held is not None:
        for name in ("prob", "label", "distance", "weight", "place", "part"):
            np.testing.assert_array_equal(getattr(first.held, name), getattr(second.held, name))
        assert first.held.slices == second.held.slices


def test_what_is_kept_is_what_was_found(tmp_path, case, fitted):
    first = propagation(tmp_path)
    assert first.best(case) is None
    preview = first.preview(case, [])
    assert_same(first.best(case), preview)
    refined = first.refine(case, [])
    assert len(fitted) == 1  # the preview's methods go on
    assert refined.held is not None
    again = propagation(tmp_path)
    assert_same(again.preview(case, []), preview)
    assert_same(again.refine(case, []), refined)
    assert_same(again.best(case), refined)
    for name in ("prob", "place"):
        np.testing.assert_array_equal(getattr(again.held(case), name), getattr(refined.held, name))
    assert len(fitted) == 1
    other = ImageCase("a_b", case.files)
    assert again.best(other) is None


def test_where_the_minutes_suffice_for_no_more_the_preview_is_the_result(tmp_path, case, monkeypatch):
    monkeypatch.setattr(propagated, "PREVIEW_WORK", 1.0)
    kept = propagation(tmp_path, seconds=0.01)
    preview = kept.preview(case, [])
    assert_same(kept.refine(case, []), preview)
    assert_same(kept.best(case), preview)
    assert kept.held(case) is None
    assert kept.seconds_for(case) > 0.01
    enough = propagation(tmp_path, seconds=1.01 * kept.seconds_for(case))
    assert enough.refine(case, []).held is not None
    assert enough.seconds_for(case) == kept.seconds_for(case) == 0


def test_what_is_small_is_never_left_at_its_preview(tmp_path, case):
    kept = propagation(tmp_path, seconds=0.01)
    assert kept.refine(case, []).held is not None
    many = propagation(tmp_path / "many", seconds=0.01, cases=1000)  # which are not small together
    assert many.refine(case, []).held is None


WORK_TO_DO = float(np.prod(SHAPE)) * 4


@pytest.fixture
def slow(monkeypatch):
    """Make previews of any size count, and return a function that makes them take that much longer than planned."""
    monkeypatch.setattr(propagated, "PREVIEW_WORK", 1.0)
    monkeypatch.setattr(propagated, "MEASURABLE", 1.0)
    monkeypatch.setattr(propagated, "LEAST_WORK", 10.0)
    monkeypatch.setattr(propagated, "COARSEST", 10.0)
    preview, clock = Ensemble.preview, SimpleNamespace(now=0.0)
    monkeypatch.setattr(propagated, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def make(slowness):
        def slowed(self):
            whole = propagated.WHOLE_SECONDS * WORK_TO_DO
            clock.now += slowness * (propagated.PREVIEW_SECONDS * WORK_TO_DO + propagated.PREVIEW_WHOLE * whole)
            return preview(self)

        monkeypatch.setattr(Ensemble, "preview", slowed)

    return make


def planned(cases=1):
    """Seconds of a run that suffice for the grid of the volume."""
    whole = propagated.WHOLE_SECONDS * WORK_TO_DO
    return 1.01 * cases * (propagated.SECONDS * WORK_TO_DO / propagated.WORK + whole) / propagated.SHARE


def test_on_a_slow_machine_the_rest_is_done_on_a_coarser_grid(tmp_path, case, slow, fitted):
    slow(3)
    kept = propagation(tmp_path, planned())
    preview = kept.preview(case, [])
    refined = kept.refine(case, [])
    fine, coarse = fitted
    assert WORK_TO_DO / 6 < coarse.work_to_do <= fine.work_to_do / 2.9
    assert refined.prob.shape == preview.prob.shape  # both at full resolution
    next((tmp_path / "kept").glob("*_refined.npz")).unlink()
    assert_same(propagation(tmp_path, planned()).refine(case, []), refined)  # killed and continued
    next((tmp_path / "kept").glob("*_refined.npz")).unlink()
    propagation(tmp_path, 10 * planned()).refine(case, [])  # with more minutes
    assert fitted[-1].work_to_do == fine.work_to_do


def test_each_of_several_volumes_is_judged(tmp_path, case, slow, fitted):
    slow(3)
    kept = propagation(tmp_path, planned(5), cases=5)
    kept.preview(case, [])
    kept.refine(case, [])
    assert fitted[-1].work_to_do <= fitted[0].work_to_do / 2.9


def test_on_a_machine_too_slow_for_the_coarsest_grid_the_preview_is_the_result(tmp_path, case, slow, monkeypatch):
    slow(8)
    monkeypatch.setattr(propagated, "LEAST_WORK", WORK_TO_DO / 2)
    kept = propagation(tmp_path, planned())
    preview = kept.preview(case, [])
    assert kept.refine(case, []).method == preview.method
    assert kept.held(case) is None
    needed = kept.seconds_for(case)
    assert 3 < needed / planned() < 4  # eight times as long for half the work, of which a fifth may be exceeded
    assert propagation(tmp_path, 1.01 * needed).refine(case, []).held is not None


@pytest.mark.parametrize("slowness", [0.5, 1, 1.2])
def test_on_a_machine_about_as_fast_as_planned_the_previews_grid_stays(tmp_path, case, slow, fitted, slowness):
    slow(slowness)
    kept = propagation(tmp_path, planned())
    kept.preview(case, [])
    assert kept.refine(case, []).held is not None
    assert len(fitted) == 1


def test_the_preview_of_a_small_volume_tells_nothing_of_the_machine(tmp_path, case, slow, monkeypatch, fitted):
    slow(100)
    monkeypatch.setattr(propagated, "MEASURABLE", 2 * WORK_TO_DO)
    kept = propagation(tmp_path, planned())
    kept.preview(case, [])
    assert kept.refine(case, []).held is not None
    assert len(fitted) == 1


def test_a_damaged_file_is_made_again(tmp_path, case, fitted):
    kept = propagation(tmp_path)
    refined = kept.refine(case, [])
    preview = kept.preview(case, [])
    (file,), (first,) = ((tmp_path / "kept").glob(f"*_{kind}.npz") for kind in ("refined", "preview"))
    whole = file.read_bytes()
    middle = len(whole) // 2
    damages = [b"", b"x" * 500, whole[:middle], whole[: middle // 2] + bytes(64) + whole[middle // 2 + 64 :]]
    entry = whole.index(b"PK\x01\x02")  # of the first array: its flags (8) and method of compression (10)
    damages += [whole[: entry + at] + value + whole[entry + at + 1 :] for at, value in ((8, b"\x01"), (10, b"\x63"))]
    for number, damaged in enumerate(damages):
        file.write_bytes(damaged)
        assert_same(kept.best(case), preview)
        assert number > 2 or kept.held(case) is None  # what else the file holds may be whole
    first.write_bytes(first.read_bytes()[:-50])
    assert kept.best(case) is None
    file.unlink()
    os.mkfifo(file)  # reading it would never end
    assert_same(kept.refine(case, []), refined)
    assert len(fitted) == 2
    assert_same(kept.best(case), refined)
    assert sorted((tmp_path / "kept").iterdir()) == sorted([file, first])


def turned(volume):
    """The volume in the order of the file of :func:`turned_case`."""
    return np.ascontiguousarray(volume.transpose(2, 0, 1)[::-1])


def turned_case(folder):
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [-2, 0, 0, 0], [0, 0, 0, 1]])
    return ImageCase("a", (str(write_nifti(folder / "a.nii.gz", turned(IMAGE), affine)),))


def test_slices_are_held_out_in_the_files_order(tmp_path):
    """They are told in RAS order, of a file that is turned."""
    case = turned_case(tmp_path)
    annotation = SimpleNamespace(numbers=turned(LABEL), annotated=turned(WEIGHT > 0))
    kept = Propagation(tmp_path / "kept", lambda file: annotation, 3, 60.0, 1, 0)
    held = kept.refine(case, [[[], [], [3]], [[], [], [8]]]).held
    places = [set(held.place[held.part == number][:, 0]) for number in held.slices]
    assert places == [{11 - 3}, {11 - 8}]


def test_labels_for_the_network_are_those_found_without_it(tmp_path, case):
    kept = propagation(tmp_path)
    assert kept.certain_classes(case) is None
    best = kept.refine(case, []).whole(SHAPE)
    labels = kept.certain_classes(case)
    assert labels.shape == (1, *SHAPE)
    np.testing.assert_array_equal(labels.affine, np.diag([1.0, 1, 2, 1]))
    certain = best.max(0) >= propagated.CERTAIN
    np.testing.assert_array_equal(np.asarray(labels)[0], np.where(certain, best.argmax(0), -1))
    assert (np.asarray(labels)[0][certain] == LABEL[certain]).mean() > 0.9


def test_labels_for_a_network_to_be_evaluated_do_not_depend_on_held_out_slices(tmp_path):
    """Given in RAS order, of a file that is turned."""
    case = turned_case(tmp_path)

    def labels(wrong, unseen):
        numbers = LABEL.copy()
        numbers[:, :, wrong] = 2 - numbers[:, :, wrong]
        annotation = SimpleNamespace(numbers=turned(numbers), annotated=turned(WEIGHT > 0))
        return np.asarray(Propagation(tmp_path, lambda file: annotation, 3, 60.0, 1, 0).certain_classes(case, unseen))

    unseen = [[], [], [8]]
    right = labels([], unseen)
    np.testing.assert_array_equal(labels([8], unseen), right)
    assert (labels([3], unseen) != right).any()
    assert not list(tmp_path.glob("*.npz"))  # nothing is kept as a result


def test_work_is_shared_among_cases_and_bounded(tmp_path):
    given = ((120, 1), (240, 2), (240, 1), (1e6, 1), (1, 100))
    works = [propagation(tmp_path, *of).work_for(SHAPE) for of in given]
    assert works[0] == works[1] == pytest.approx(works[2] / 2, rel=0.01)
    assert works[4] < works[0] < works[3]
    assert propagation(tmp_path, 120).work_for((512, 512, 30)) < works[0]  # whose results take longer, too


def test_several_channels_and_files(tmp_path):
    files = [write_nifti(tmp_path / f"{i}.nii.gz", IMAGE * (i + 1)) for i in range(2)]
    files.append(write_nifti(tmp_path / "both.nii.gz", np.stack([IMAGE, -IMAGE], -1)))
    for name, chosen in (("two", files[:2]), ("one", files[2:])):
        found = propagation(tmp_path).preview(ImageCase(name, tuple(map(str, chosen))), [])
        assert found.prob.shape == (3, *SHAPE)


def test_an_outlook_is_calibrated_within_the_box():
    random = np.random.default_rng(0)
    prob = random.dirichlet(np.ones(3), (4, 5, 6)).transpose(3, 0, 1, 2).astype(np.float32)
    box = (slice(2, 6), slice(1, 6), slice(0, 6))
    propagated = Propagated(prob, box, None, "test")
    distance = distance_of(np.arange(8 * 8 * 6).reshape(8, 8, 6) % 50 == 0, (1, 1, 2))
    plain = Outlook(propagated, Calibration()).prob(distance)
    np.testing.assert_allclose(plain, prob, atol=1e-3)
    calibration = Calibration(0.5, 0.2, 3.0)
    np.testing.assert_array_equal(Outlook(propagated, calibration).prob(distance), calibration(prob, distance[box]))
    network = random.dirichlet(np.ones(3), (8, 8, 6)).transpose(3, 0, 1, 2).astype(np.float32)
    both = Outlook(propagated, Calibration(), 1.0).prob(distance, network)
    product = prob * network[(slice(None), *box)]
    np.testing.assert_allclose(both, (prob + product / product.sum(0)) / 2, atol=5e-3)
