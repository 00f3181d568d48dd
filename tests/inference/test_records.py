"""Results appear whole or not at all, and nothing is done twice."""

import json
import os

import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.records import CaseRecord, check_summary, remove_empty_drafts, results_in, write_summary
from sparse3dunet.io.written import file_digest

NAMES = ["sub/a_seg.nii.gz", "pictures/a.png"]


@pytest.fixture
def case(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"image")
    return ImageCase("sub/a", (str(tmp_path / "a.nii.gz"),))


def do(out, case, key="one", content=b"result", overwrite=False):
    record = CaseRecord(out, case, {"model": key})
    drafts = record.start(NAMES, overwrite)
    for name in NAMES:
        (drafts / name).write_bytes(content)
    record.finish(NAMES, seconds=1.5, ml={"background": 3.0, "core": 0.25}, mean_confidence=None, segmentation=NAMES[0])
    return record


def test_done_is_done(tmp_path, case):
    out = tmp_path / "out"
    assert not CaseRecord(out, case, {"model": "one"}).is_done()
    do(out, case)
    assert CaseRecord(out, case, {"model": "one"}).is_done()
    assert not CaseRecord(out, case, {"model": "two"}).is_done()
    remove_empty_drafts(out)
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == {*NAMES, "records/sub/a.json"}
    (out / NAMES[0]).unlink()
    assert not CaseRecord(out, case, {"model": "one"}).is_done()


def test_a_case_is_held_by_one_until_it_is_released(tmp_path, case):
    first, second = (CaseRecord(tmp_path / "out", case, {"model": "one"}) for _ in range(2))
    assert first.hold()
    assert not second.hold()
    first.release()
    assert second.hold()
    second.release()


def test_another_image_under_the_name_is_done_again(tmp_path, case):
    do(tmp_path / "out", case)
    (tmp_path / "a.nii.gz").write_bytes(b"another")
    assert not CaseRecord(tmp_path / "out", case, {"model": "one"}).is_done()


def test_another_image_of_the_same_size_and_time_is_not_done(tmp_path, case):
    """As archives and copying programs set it; a copy of the image is done."""
    out = tmp_path / "out"
    do(out, case)
    other = tmp_path / "other" / "a.nii.gz"
    other.parent.mkdir()
    for content, is_done in ((b"image", True), (b"other", False)):
        other.write_bytes(content)
        time = (tmp_path / "a.nii.gz").stat().st_mtime_ns
        os.utime(other, ns=(time, time))
        assert CaseRecord(out, ImageCase("sub/a", (str(other),)), {"model": "one"}).is_done() == is_done
    with pytest.raises(DataError, match=r"the results named sub/a are those of"):
        do(out, ImageCase("sub/a", (str(other),)))


@pytest.mark.parametrize("left", [["a.nii.gz"], ["a.nii.gz", "b.nii.gz"]])
def test_channels_of_another_image(tmp_path, case, left):
    """Which is done only if all of them are the same; one that is gone tells nothing."""
    for folder in ("", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("a.nii.gz", "b.nii.gz"):
            (tmp_path / folder / name).write_bytes(b"image")
            os.utime(tmp_path / folder / name, (0, 0))
    cases = [ImageCase("sub/a", tuple(str(tmp_path / f / n) for n in ("a.nii.gz", "b.nii.gz"))) for f in ("", "other")]
    do(tmp_path / "out", cases[0])
    for name in {"a.nii.gz", "b.nii.gz"} - set(left):
        (tmp_path / name).unlink()
    assert CaseRecord(tmp_path / "out", cases[1], {"model": "one"}).is_done() == (len(left) == 2)


def test_killed_while_moving(tmp_path, case):
    """The record is there, the drafts are whole: moving them is all that is left to do, once."""
    out = tmp_path / "out"
    record = do(out, case)
    record.drafts.joinpath("sub").mkdir(parents=True)
    os.replace(out / NAMES[0], record.drafts / NAMES[0])
    assert CaseRecord(out, case, {"model": "one"}).is_done()
    assert (out / NAMES[0]).read_bytes() == b"result"
    assert not record.drafts.exists()


def test_killed_while_drafting(tmp_path, case):
    """Half a draft never becomes a result, not even where results of the same key were there before and are gone."""
    out = tmp_path / "out"
    record = do(out, case)
    (out / NAMES[0]).unlink()
    drafts = record.start(NAMES)
    (drafts / NAMES[0]).write_bytes(b"half")
    again = CaseRecord(out, case, {"model": "one"})
    assert not again.is_done()
    assert not (out / NAMES[0]).exists()
    again.start(NAMES)
    assert not (again.drafts / NAMES[0]).exists()


def test_what_a_user_changed_is_not_replaced(tmp_path, case):
    out = tmp_path / "out"
    do(out, case)
    (out / NAMES[0]).write_bytes(b"corrected by hand")
    assert CaseRecord(out, case, {"model": "one"}).is_done()
    with pytest.raises(DataError, match=r"a_seg.nii.gz exists and is not what this command wrote.*--overwrite"):
        do(out, case, "two")
    assert (out / NAMES[0]).read_bytes() == b"corrected by hand"
    do(out, case, "two", overwrite=True)
    do(out, case, "three", b"newer")
    assert (out / NAMES[0]).read_bytes() == b"newer"


def test_a_killed_run_does_not_make_former_results_foreign(tmp_path, case):
    out = tmp_path / "out"
    do(out, case)
    CaseRecord(out, case, {"model": "two"}).start(NAMES)
    do(out, case, "two", b"newer")
    assert (out / NAMES[0]).read_bytes() == b"newer"


def test_failed_cases_keep_their_former_results(tmp_path, case):
    out = tmp_path / "out"
    do(out, case)
    CaseRecord(out, case, {"model": "two"}).fail("no memory")
    assert not CaseRecord(out, case, {"model": "one"}).is_done()
    assert (out / NAMES[0]).read_bytes() == b"result"
    assert json.loads((out / "records/sub/a.json").read_text())["error"] == "no memory"


def test_summary(tmp_path, case):
    out = tmp_path / "out"
    do(out, case)
    CaseRecord(out, ImageCase("b", case.files), {}).fail("bad, very bad")
    CaseRecord(out, ImageCase("c", case.files), {}).start(["c_seg.nii.gz"])
    lines = write_summary(out, ["background", "core"]).read_text().splitlines()
    assert lines == [
        "case,status,seconds,core ml,mean confidence,segmentation,error,notes",
        'b,failed,,,,,"bad, very bad",',
        "sub/a,done,1.50,0.2500,,sub/a_seg.nii.gz,,",
    ]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_summary_of_the_user_stays(tmp_path, case, kind):
    """One beside which there are no records; a folder of that name stays in any case."""
    out = tmp_path / "out"
    path = out / "summary.csv" if kind == "file" else out / "summary.csv/table"
    path.parent.mkdir(parents=True)
    path.write_text("my own")
    for overwrite in (False, True) if kind == "folder" else (False,):
        with pytest.raises(DataError, match=r"out/summary.csv (exists and is not|is a folder)"):
            check_summary(out, overwrite)
    if kind == "folder":
        with pytest.raises(DataError, match="is a folder"):
            write_summary(out, ["background", "core"])
    assert path.read_text() == "my own"
    if kind == "file":
        check_summary(out, overwrite=True)
        write_summary(out, ["background", "core"])
        check_summary(out)


def test_a_summary_without_records_is_ours_by_its_heading(tmp_path):
    """As an earlier version left it if it was stopped before the first image."""
    write_summary(tmp_path, ["background", "core"])
    (tmp_path / "records").rmdir()
    check_summary(tmp_path)


def test_a_folder_in_the_place_of_a_result_stays(tmp_path, case):
    precious = tmp_path / "out" / NAMES[0] / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("x")
    with pytest.raises(DataError, match=r"a_seg.nii.gz is a folder"):
        do(tmp_path / "out", case, overwrite=True)
    assert precious.read_text() == "x"


def test_results_that_are_wanted_now(tmp_path, case):
    """More are asked for: not done. Fewer: what is left over of other settings goes, unless it was changed."""
    out = tmp_path / "out"
    do(out, case)
    record = CaseRecord(out, case, {"model": "one"})
    assert record.is_done(NAMES)
    assert not record.is_done([*NAMES, "sub/a_confidence.nii.gz"])
    record = CaseRecord(out, case, {"model": "two"})
    drafts = record.start(NAMES[:1])
    (drafts / NAMES[0]).write_bytes(b"newer")
    record.finish(NAMES[:1])
    assert not (out / NAMES[1]).exists()
    do(out, case, "three")


def test_what_a_user_changed_is_not_removed(tmp_path, case):
    """Of the results left over of other settings, those as they were written go; a changed one is the user's."""
    out = tmp_path / "out"
    names = [*NAMES, "b.txt"]
    record = CaseRecord(out, case, {"model": "one"})
    drafts = record.start(names)
    for name in names:
        (drafts / name).write_bytes(b"result")
    record.finish(names)
    (out / NAMES[1]).write_bytes(b"drawn by hand")
    record = CaseRecord(out, case, {"model": "two"})
    (record.start(NAMES[:1]) / NAMES[0]).write_bytes(b"newer")
    record.finish(NAMES[:1])
    assert (out / NAMES[0]).read_bytes() == b"newer"
    assert (out / NAMES[1]).read_bytes() == b"drawn by hand"
    assert not (out / "b.txt").exists()


def test_folders_for_drafts_go_unless_there_is_a_draft(tmp_path, case):
    """A run that was killed leaves folders in folders; and drafts, which the next one may need."""
    out = tmp_path / "out"
    drafts = CaseRecord(out, case, {}).start(NAMES)
    (drafts / NAMES[0]).write_bytes(b"half")
    remove_empty_drafts(out)
    assert (drafts / NAMES[0]).read_bytes() == b"half"
    (drafts / NAMES[0]).unlink()
    remove_empty_drafts(out)
    assert [path.name for path in out.iterdir()] == ["records"]


def test_names_that_lead_elsewhere(tmp_path, case):
    for name in ("..", "../a", "a/../../b", "/a"):
        with pytest.raises(DataError, match="leads out of the output folder"):
            CaseRecord(tmp_path / "out", ImageCase(name, case.files), {})


def test_another_images_results_stay(tmp_path, case):
    out = tmp_path / "out"
    do(out, case)
    other = tmp_path / "other" / "a.nii.gz"
    other.parent.mkdir()
    other.write_bytes(b"another image")
    with pytest.raises(DataError, match=r"the results named sub/a are those of"):
        do(out, ImageCase("sub/a", (str(other),)))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a.nii.gz")
    do(out, ImageCase("sub/a", (str(link),)), "two")
    (tmp_path / "a.nii.gz").rename(tmp_path / "moved.nii.gz")
    link.unlink()
    do(out, ImageCase("sub/a", (str(tmp_path / "moved.nii.gz"),)), "three")


def test_an_error_of_another_image_does_not_take_the_results(tmp_path, case):
    """Else the next try would find them to be its own, and replace them."""
    out = tmp_path / "out"
    do(out, case)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.nii.gz").write_bytes(b"another image")
    other = ImageCase("sub/a", (str(tmp_path / "other" / "a.nii.gz"),))
    for _ in range(2):
        with pytest.raises(DataError, match=r"the results named sub/a are those of"):
            do(out, other)
        CaseRecord(out, other, {"model": "one"}).fail("other image")
    assert CaseRecord(out, case, {"model": "one"}).is_done(NAMES)
    rows = write_summary(out, ["background", "a"]).read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [["sub/a", "failed"], ["sub/a", "done"]]
    assert "other image" in rows[0]
    do(out, other, content=b"wanted", overwrite=True)
    assert (out / NAMES[0]).read_bytes() == b"wanted"
    CaseRecord(out, other, {"model": "two"}).fail("damaged")
    assert CaseRecord(out, other, {"model": "two"}).read()["error"] == "damaged"


def test_overwrite_does_what_was_changed_again(tmp_path, case):
    out = tmp_path / "out"
    record = do(out, case)
    (out / NAMES[0]).write_bytes(b"")
    assert record.is_done(NAMES)
    assert not record.is_done(NAMES, unchanged=True)


def test_results_that_were_copied_are_as_written(tmp_path, case):
    """A copy has other times; only its content tells whether somebody changed it."""
    out = tmp_path / "out"
    record = do(out, case)
    for name in NAMES:
        os.utime(out / name, (1, 1))
    assert record.is_done(NAMES, unchanged=True)
    record.check(NAMES)
    do(out, case, "two")
    (out / NAMES[0]).write_bytes(b"Result")  # of the same size
    os.utime(out / NAMES[0], (1, 1))
    with pytest.raises(DataError, match="is not what this command wrote there"):
        do(out, case, "three")


def test_odd_records_do_no_harm(tmp_path, case):
    out = tmp_path / "out"
    do(out, case)
    for name, content in {"empty": "", "list": "[]", "foreign": "{}"}.items():
        (out / "records" / f"{name}.json").write_text(content)
    assert len(write_summary(out, ["background", "core"]).read_text().splitlines()) == 2
    assert results_in(out) == {str(out / name) for name in NAMES}
    record = CaseRecord(out, case, {"model": "one"})
    record.path.write_text(json.dumps({"status": "done", "results": dict.fromkeys(NAMES, 5)}))
    with pytest.raises(DataError, match="is not what this command wrote there"):
        record.check(NAMES)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["results"].update({"../precious.txt": [1, 2]}),
        lambda r: r["results"].update({"/etc/hosts": [1, 2]}),
        lambda r: r.update(results=[1]),
        lambda r: r.update(seconds="long"),
        lambda r: r.update(ml={"shell": []}),
        lambda r: r.update(version=99),
        lambda r: r.update(image="x"),
    ],
)
def test_records_lead_to_no_other_file(tmp_path, case, change):
    """A damaged record counts as none; what it names is neither read nor removed."""
    precious = tmp_path / "precious.txt"
    precious.write_text("x")
    out = tmp_path / "out"
    record = do(out, case)
    content, status = json.loads(record.path.read_text()), precious.stat()
    change(content)
    if "../precious.txt" in content["results"]:
        content["results"]["../precious.txt"] = [status.st_size, status.st_mtime_ns]
    record.path.write_text(json.dumps(content))
    assert not record.is_done(NAMES)
    write_summary(out, ["background", "shell"])
    do(out, case, overwrite=True)
    assert precious.read_text() == "x"
    assert record.is_done(NAMES)


def test_links_are_not_followed(tmp_path, case):
    """Neither the folder for drafts nor a result may lead to other files."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.txt").write_text("precious")
    record = CaseRecord(out, case, {"model": "one"})
    record.drafts.parent.mkdir(parents=True)
    record.drafts.symlink_to(elsewhere)
    (out / "sub").mkdir()
    (out / NAMES[0]).symlink_to(elsewhere / "a.txt")
    do(out, case, overwrite=True)
    assert [path.read_text() for path in elsewhere.iterdir()] == ["precious"]
    assert not (out / NAMES[0]).is_symlink()


def test_a_named_pipe_is_no_record(tmp_path, case):
    """Reading it would never end."""
    out = tmp_path / "out"
    do(out, case)
    os.mkfifo(out / "records/pipe.json")
    assert len(write_summary(out, ["background", "core"]).read_text().splitlines()) == 2
    record = CaseRecord(out, case, {"model": "one"})
    record.path.unlink()
    os.mkfifo(record.path)
    assert record.read() == {}
    (out / NAMES[0]).unlink()
    os.mkfifo(out / NAMES[0])
    with pytest.raises(DataError, match="is a named pipe"):
        file_digest(out / NAMES[0])


def test_an_image_is_listed_once_by_the_name_that_it_has_now(tmp_path, case):
    out = tmp_path / "out"
    do(out, case)
    renamed, other = ImageCase("b/a", case.files), ImageCase("c", (str(tmp_path / "c.nii.gz"),))
    (tmp_path / "c.nii.gz").write_bytes(b"another")
    for one in (renamed, other):
        do(out, one, overwrite=True)
    rows = write_summary(out, ["background", "core"], cases=[renamed]).read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["b/a", "c"]
