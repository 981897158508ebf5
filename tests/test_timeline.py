"""The ledger: what counts, what is refused, and that nothing is lost or torn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import dhlab.timeline as ledger
from dhlab.errors import BadValueError, DHLabWarning, StorageError, UnknownNameError
from dhlab.timeline import STAGES, Timeline, stage

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_ledger_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DHLAB_TIMELINE", raising=False)


class Clock(datetime):
    """A wall clock that a test sets."""

    moment = datetime(2026, 1, 1, tzinfo=UTC)

    @classmethod
    def now(cls, tz=None):
        return cls.moment


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    Clock.moment = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(ledger, "datetime", Clock)
    return Clock


def row(timeline: Timeline, name: str) -> dict:
    return next(r for r in timeline.table() if r["stage"] == name)


def test_without_a_ledger_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with stage("data") as facts:
        facts["n"] = 1
    assert list(tmp_path.iterdir()) == []


def test_only_the_outermost_stage_counts(tmp_path: Path) -> None:
    with Timeline(tmp_path) as timeline:
        with stage("validated", model="unet") as facts, stage("deployed"), stage("data"):
            facts["dice"] = np.float32(0.5)
        with stage("packaged"):
            pass
    assert [e.stage for e in timeline.events()] == ["validated", "packaged"]
    assert timeline.events()[0].facts == {"model": "unet", "dice": 0.5}
    assert all(e.success and e.seconds > 0 for e in timeline.events())
    with stage("data"):
        pass
    assert len(timeline.events()) == 2, "the ledger was active only inside its block"


def test_ledgers_nest_and_threads_do_not_share_them(tmp_path: Path) -> None:
    outer, inner = Timeline(tmp_path / "outer"), Timeline(tmp_path / "inner")

    def other() -> None:
        with stage("data"):
            pass

    with outer:
        with inner, stage("data"):
            pass
        with outer, stage("need"):
            pass
        with stage("trained"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [e.stage for e in inner.events()] == ["data"]
    assert [e.stage for e in outer.events()] == ["need", "trained"]


def test_failure_is_recorded_and_raised(tmp_path: Path) -> None:
    with Timeline(tmp_path) as timeline:
        with pytest.raises(ZeroDivisionError), stage("trained"):
            _ = 1 / 0
        with pytest.raises(KeyboardInterrupt), stage("trained"):
            raise KeyboardInterrupt
    assert [(e.success, e.error) for e in timeline.events()] == [
        (False, "ZeroDivisionError"),
        (False, "KeyboardInterrupt"),
    ]
    assert row(timeline, "trained")["failures"] == 2


def test_environment_variable_activates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHLAB_TIMELINE", str(tmp_path / "ledger with spaces 🧪"))
    with stage("data", name="slide", seconds=3, stage="x"):
        pass
    (event,) = Timeline(tmp_path / "ledger with spaces 🧪").events()
    assert event.facts == {"name": "slide", "seconds": 3, "stage": "x"}


def test_table_sums_machine_and_human_minutes_apart(tmp_path: Path, clock: type[Clock]) -> None:
    timeline = Timeline(tmp_path)
    steps = [
        ("need", 0, 30),
        ("data", 60, 0),
        ("deployed", 60, 0),  # a trial prediction: not yet production
        ("trained", 600, 0),
        ("validated", 120, 0),
        ("packaged", 6, 0),
        ("deployed", 30, 0),
        ("deployed", 6000, 0),  # use
    ]
    for name, seconds, minutes in steps:
        clock.moment += timedelta(hours=1)
        timeline.mark(name, seconds=seconds, human_minutes=minutes)
    timeline.human("annotated", minutes=12, person="two pathologists")
    table = {r["stage"]: r for r in timeline.table()}
    assert list(table) == [*STAGES, "afterwards", "time to model in production"]
    assert table["annotated"]["human_minutes"] == 12
    assert table["annotated"]["machine_minutes"] == 0
    assert table["deployed"]["events"] == 2
    assert table["afterwards"]["machine_minutes"] == 100
    total = table["time to model in production"]
    assert total["machine_minutes"] == pytest.approx((60 + 60 + 600 + 120 + 6 + 30) / 60)
    assert total["human_minutes"] == 42
    assert total["wall_minutes"] == 360
    assert total["reached"] is True
    assert total["last"] == "2026-01-01T07:00:00+00:00"
    text = timeline._repr_html_()
    assert "time to model in production" in text
    assert "14.6" in text


def test_production_is_not_reached_by_failures(tmp_path: Path, clock: type[Clock]) -> None:
    timeline = Timeline(tmp_path)
    timeline.mark("trained", seconds=60)
    clock.moment += timedelta(minutes=5)
    timeline.mark("deployed", seconds=1, success=False, error="BadFileError")
    total = timeline.table()[-1]
    assert total["reached"] is False
    assert total["wall_minutes"] == 6
    assert "not reached yet" in timeline._repr_html_()
    clock.moment += timedelta(minutes=5)
    timeline.mark("deployed", seconds=1)
    assert timeline.table()[-1]["reached"] is True


def test_an_empty_ledger(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "never made")
    assert timeline.events() == timeline.table() == timeline.problems() == []
    assert "nothing recorded" in repr(timeline)
    timeline._repr_html_()
    assert not (tmp_path / "never made").exists(), "looking writes nothing"


def test_torn_and_foreign_files_are_reported(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path)
    good = timeline.mark("data", seconds=1)
    body = json.loads(good.read_text())
    bad = {
        "torn.json": good.read_text()[: len(good.read_text()) // 2],
        "empty.json": "",
        "list.json": "[]",
        "deep.json": "[" * 100_000,
        "notes.txt": "hello",
        "binary.json": "\x00\x01",
        "newer.json": json.dumps(body | {"format": 99}),
        "negative.json": json.dumps(body | {"seconds": -1}),
        "infinite.json": json.dumps(body | {"seconds": float("inf")}),
        "overflow.json": json.dumps(body | {"number": float("inf")}),
        "stage.json": json.dumps(body | {"stage": "holiday"}),
        "early.json": json.dumps(body | {"finished": "0001-01-01T00:00:00+00:00"}),
        "date.json": json.dumps(body | {"finished": "yesterday"}),
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    (tmp_path / ".x.json.partial").write_text("left by a killed writer")
    assert len(timeline.events()) == 1
    problems = timeline.problems()
    assert len(problems) == len(bad) + 1
    for name in [*bad, "folder"]:
        assert any(name in p for p in problems), name
    assert timeline.table()[-1]["events"] == 1
    assert f"{len(problems)} unreadable" in repr(timeline)
    assert "torn.json" in timeline._repr_html_()


def test_naive_times_count_as_utc(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path)
    path = timeline.mark("data", seconds=1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": "2026-01-01T00:00:00"}))
    timeline.mark("trained", seconds=1)
    assert timeline.events()[0].finished == datetime(2026, 1, 1, tzinfo=UTC)
    assert timeline.table()


def test_a_clock_that_goes_back(tmp_path: Path, clock: type[Clock]) -> None:
    timeline = Timeline(tmp_path)
    timeline.mark("data", seconds=10)
    timeline.mark("packaged")
    clock.moment -= timedelta(days=1)
    with timeline, stage("deployed"):
        pass
    assert all(e.seconds >= 0 and e.started <= e.finished for e in timeline.events())
    assert any("went back by 8.64e+04 s before 'deployed'" in p for p in timeline.problems())
    assert all(r["wall_minutes"] >= 0 for r in timeline.table())


@pytest.mark.parametrize("field", [{"seconds": -1.0}, {"seconds": float("nan")}, {"human_minutes": float("inf")}])
def test_impossible_times_are_refused(tmp_path: Path, field: dict) -> None:
    with pytest.raises(BadValueError, match="finite"):
        Timeline(tmp_path).mark("data", **field)
    assert list(tmp_path.iterdir()) == []


def test_unknown_stages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="trained"):
        Timeline(tmp_path).mark("training")
    with pytest.raises(UnknownNameError, match="annotated"), stage("annotate"):
        pass


def test_facts_are_plain_and_name_nobody(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path)
    timeline.mark(
        "data",
        path="/home/ann/Müller, Hans/slide.svs",
        windows="C:\\data\\case\\slide.ndpi",
        network="\\\\server\\share\\slide.mrxs",
        url="s3://bucket/case/slide.tif",
        home="~/slide.svs",
        file=Path("/data/x/y.svs"),
        relative="model/unet",
        numbers=(np.int64(3), np.float32(0.5), float("nan"), True, None),
        nested={"paths": [Path("/a/b.svs"), "/a/c.svs"]},
        array=np.arange(3),
        patients=12,
    )
    assert timeline.events()[0].facts == {
        "path": "slide.svs",
        "windows": "slide.ndpi",
        "network": "slide.mrxs",
        "url": "slide.tif",
        "home": "slide.svs",
        "file": "y.svs",
        "relative": "model/unet",
        "numbers": [3, 0.5, None, True, None],
        "nested": {"paths": ["b.svs", "c.svs"]},
        "array": [0, 1, 2],
        "patients": 12,
    }
    for key in ("patient", "patient_id", "PatientName", "mrn", "birth_date", "accession_number"):
        with pytest.raises(BadValueError, match="patient"):
            timeline.mark("data", **{key: "x"})
        with pytest.raises(BadValueError, match="patient"):
            timeline.mark("data", inner={key: "x"})
    with pytest.raises(BadValueError, match="object"):
        timeline.mark("data", thing=object())
    assert len(timeline.events()) == 1


@pytest.mark.skipif(os.name != "posix", reason="folders are made read-only by mode")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(StorageError, match="ledger"):
            Timeline(folder).mark("data")
        with pytest.raises(StorageError, match="ledger"), Timeline(folder):
            pass


def test_a_read_only_folder(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="may write"):
            Timeline(tmp_path).mark("data")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_leaves_nothing_and_does_not_cost_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    timeline = Timeline(tmp_path)
    monkeypatch.setattr(ledger.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        timeline.mark("data")
    result = None
    with pytest.warns(DHLabWarning, match="lacks 'trained'"), timeline, stage("trained"):
        result = 42
    assert result == 42
    assert list(tmp_path.iterdir()) == []


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from dhlab.timeline import Timeline, stage\n"
        "with Timeline(sys.argv[1]):\n"
        "    for i in range(25):\n"
        "        with stage('data', worker=int(sys.argv[2]), i=i): pass\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(i)], cwd=ROOT) for i in range(4)]
    timeline, seen = Timeline(tmp_path), 0
    while any(w.poll() is None for w in workers):
        assert timeline.problems() == [], "a reader never sees half an event"
        assert len(timeline.events()) >= seen
        seen = len(timeline.events())
    assert [w.returncode for w in workers] == [0] * 4
    found = {(e.facts["worker"], e.facts["i"]) for e in timeline.events()}
    assert found == {(w, i) for w in range(4) for i in range(25)}
    assert len(timeline.events()) == 100


def test_a_forked_process_is_a_writer_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline(tmp_path)
    timeline.mark("data")
    pid = os.getpid()
    monkeypatch.setattr(ledger.os, "getpid", lambda: pid + 1)
    timeline.mark("data")
    assert len({e.writer for e in timeline.events()}) == 2
