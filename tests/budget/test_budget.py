import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cocoseg.budget import budget as module
from cocoseg.budget import ledger
from cocoseg.budget.budget import END, Budget
from cocoseg.budget.ledger import keep_ledger, read_ledger
from cocoseg.durations import now
from cocoseg.errors import CocosegError, WriteError
from cocoseg.run_folder import LEDGER


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Clock:
    watch = Clock()
    monkeypatch.setattr(module, "now", lambda: watch.now)
    return watch


def started(watch: Clock, limit: float | None, **more: float) -> Budget:
    return Budget(limit, began=watch.now, **more)


def test_used_and_left(watch: Clock) -> None:
    budget = started(watch, 60, used_before=5)
    watch.now += 10
    assert budget.used() == 15
    assert budget.left() == 45
    assert started(watch, None).left() == float("inf")


def test_what_the_end_needs_is_kept_in_reserve(watch: Clock) -> None:
    budget = started(watch, 100)
    budget.expect("validation", 5)
    budget.expect("checkpoint", 2)
    budget.expect("export", 3)
    assert budget.seconds_after_validation() == pytest.approx(2 * 2.2 + 3.3 + END)
    assert budget.seconds_reserved() == pytest.approx(5.5 + 2 * 2.2 + 3.3 + END)
    budget.expect("figures", 0.5)
    assert budget.seconds_after_validation() == pytest.approx(2 * 2.2 + 3.3 + 0.55 + END)
    budget.expect("step", 1)
    watch.now += 100 - budget.seconds_reserved() - 1.1
    assert not budget.is_spent()
    watch.now += 0.2
    assert budget.is_spent()


def test_what_is_saved_is_charged_once(watch: Clock) -> None:
    budget = started(watch, 100)
    for seconds in (2, 1):
        watch.now += 3
        with budget.saving("checkpoint"):
            watch.now += seconds
    watch.now += 1
    assert budget.charge("computing") == 7
    assert (budget.spent["computing"], budget.spent["saving"]) == (7, 3)
    assert budget.expected["checkpoint"] == 2


def test_saving_that_fails_is_charged_too(watch: Clock) -> None:
    """A full disk may take long to say so."""
    budget = started(watch, 100)

    def fail() -> None:
        with budget.saving("checkpoint"):
            watch.now += 5
            raise OSError

    with pytest.raises(OSError):
        fail()
    assert budget.charge("computing") == 0
    assert (budget.spent["saving"], budget.expected["checkpoint"]) == (5, 5)


def test_a_checkpoint_beside_those_of_the_end_must_fit(watch: Clock) -> None:
    """The first export is expected to take as long as a checkpoint."""
    budget = started(watch, 100)
    budget.expect("checkpoint", 10)
    assert budget.seconds_after_figures() == pytest.approx(33 + END)
    watch.now += 100 - (33 + END) - 11 - 0.1
    assert budget.fits_checkpoint()
    watch.now += 0.2
    assert not budget.fits_checkpoint()
    assert not budget.is_spent()


def test_a_minute_is_kept_for_other_formats_once(watch: Clock) -> None:
    """They are written at the end, and not after a validation that finds a better model."""
    budget = started(watch, 1000)
    before = budget.seconds_reserved()
    budget.writes_formats = True
    assert budget.seconds_reserved() == before + 60
    budget.expect("validation", 36)
    watch.now += 1000 - (2 * 1.1 * 36 + 60 + END) - 1
    assert budget.fits_validation()
    watch.now += 2
    assert not budget.fits_validation()


@pytest.mark.parametrize(("limit", "kept"), [(None, 0), (60, 6), (600, 60), (21_600, 60)])
def test_other_formats_get_a_tenth_of_the_limit_at_most(limit: float | None, kept: float) -> None:
    assert Budget(limit, writes_formats=True).seconds_for_formats() == kept
    assert Budget(limit).seconds_for_formats() == 0


def test_a_validation_too_long_to_fit_gets_a_fifth(watch: Clock) -> None:
    budget = started(watch, 100)
    budget.expect("validation", 70)
    assert budget.seconds_reserved() == pytest.approx(20 + END)
    watch.now += 90
    assert budget.fits_validation_batch(10 - END - 0.1)
    assert not budget.fits_validation_batch(10 - END + 0.1)


def test_without_a_limit_nothing_depends_on_the_clock(watch: Clock) -> None:
    budget = started(watch, None)
    budget.begin_training()
    watch.now += 1e6
    budget.advance(0.25)
    assert budget.progress == 0.25
    assert not budget.is_spent()
    assert budget.seconds_reserved() == 0


def test_progress_runs_from_the_first_step_to_the_reserve(watch: Clock) -> None:
    budget = started(watch, 110 + END)
    watch.now += 10  # start-up
    budget.begin_training()
    budget.advance(0)
    assert budget.progress == 0
    watch.now += 50
    budget.advance(0)
    assert budget.progress == pytest.approx(0.5)  # without the 10 s of start-up, and what is kept in reserve
    watch.now += 50
    budget.advance(0)
    assert budget.progress == pytest.approx(1)
    watch.now += 50
    budget.advance(0)
    assert budget.progress == 1


def test_progress_never_falls_and_follows_the_position_where_that_is_ahead(watch: Clock) -> None:
    budget = started(watch, 100)
    budget.begin_training()
    budget.expect("validation", 15)
    watch.now += 50
    budget.advance(0)
    before = budget.progress
    budget.expect("validation", 0)  # the reserve was too large
    budget.advance(0)
    assert budget.progress == before > 0.5
    budget.advance(0.8)
    assert budget.progress == 0.8


def test_a_resumed_run_goes_on_where_it_was(watch: Clock) -> None:
    first = started(watch, 101)
    watch.now += 10
    first.begin_training()
    watch.now += 30
    first.spent["computing"] += 30
    first.advance(0)
    ledger = json.loads(json.dumps(first.to_dict()))

    watch.now += 10_000  # nothing ran
    second = started(watch, 101)
    second.resume(ledger)
    assert second.used() == 40
    watch.now += 10
    second.begin_training()
    second.advance(0)
    assert second.progress == pytest.approx((50 - 10) / (101 - END - 10))
    assert second.progress > first.progress
    assert second.spent["computing"] == 30
    assert second.spent["starting"] == 20


def test_a_ledger_of_an_earlier_version_counts_too(watch: Clock) -> None:
    ledger = started(watch, 100, used_before=30).to_dict()
    ledger["expected"] = {"validation": 4.0, "pictures": 2.0, "formats": {}}
    budget = started(watch, 100)
    budget.resume(ledger)
    assert budget.used() == 30
    assert budget.expected["validation"] == 4
    assert budget.expected["figures"] == 0


def test_the_ledger_with_more_time_counts(watch: Clock) -> None:
    budget = started(watch, 100)
    budget.resume({**started(watch, 100).to_dict(), "used": 30})
    budget.resume({**started(watch, 100).to_dict(), "used": 20})  # an older one, of a checkpoint
    budget.resume(None)
    assert budget.used() == 30


def test_the_ledger_is_written_while_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "WRITE_EVERY", 0.02)
    budget = Budget(60.0)
    path = tmp_path / LEDGER
    with keep_ledger(path, budget):
        first = read_ledger(path)
        deadline = time.monotonic() + 60
        while (later := read_ledger(path)) == first and time.monotonic() < deadline:
            time.sleep(0.01)
    last = read_ledger(path)
    assert first is not None
    assert later is not None
    assert last is not None
    assert first["used"] < later["used"] <= last["used"]
    assert last["limit"] == 60.0
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER]


def test_a_disk_that_is_full_for_a_while_does_not_end_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WRITE_EVERY", 0.01)
    write, is_full, was_refused = ledger.write_json, threading.Event(), threading.Event()

    def write_or_refuse(path: Path, content: dict[str, Any]) -> None:
        if is_full.is_set():
            was_refused.set()
            raise WriteError("no space left")
        write(path, content)

    monkeypatch.setattr(ledger, "write_json", write_or_refuse)
    with keep_ledger(tmp_path / LEDGER, Budget(60.0)):
        first = read_ledger(tmp_path / LEDGER)
        is_full.set()
        assert was_refused.wait(60)
        is_full.clear()
    assert read_ledger(tmp_path / LEDGER)["used"] > first["used"]


WITHOUT_A_KEY = json.dumps({**Budget(60.0).to_dict(), "used": 5, "spent": {}})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"limit": 5}', '{"limit": 5, "used": "much"}', WITHOUT_A_KEY]
)
def test_a_damaged_ledger_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / LEDGER).write_text(content)
    with pytest.raises(CocosegError, match=rf"{LEDGER}: not readable .*delete it"):
        read_ledger(tmp_path / LEDGER)


def test_no_ledger(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / LEDGER) is None


BEGINNINGS = """
import time
while time.process_time() < 0.3: pass
from cocoseg.durations import begin_job, now
print(now(), begin_job(), begin_job(), now())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no exec")
def test_the_first_job_counts_from_the_first_line_with_the_work_before_it() -> None:
    """A script that waits before it calls `exec` is no work of ours, though the process is the same."""
    begin = now()
    command = ["/bin/sh", "-c", 'sleep 1; exec "$0" -c "$1"', sys.executable, BEGINNINGS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line, first, second, end = map(float, done.stdout.split())
    assert begin + 0.9 < first <= line - 0.3
    assert line <= second <= end
