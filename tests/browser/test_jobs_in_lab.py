"""The panel of jobs in a real JupyterLab: what runs, what it prints, stopped and begun again by buttons."""

from __future__ import annotations

import math
import time

import pytest
from screens import keep_picture

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")

from dhlab.progress import report_progress
from dhlab.scheduling import submit

pytestmark = pytest.mark.browser


@pytest.fixture
def panel(browser, start_lab, tmp_path, monkeypatch):
    """The panel, opened by a click on its icon, and the page around it."""
    monkeypatch.setenv("DHLAB_JOBS", str(tmp_path / "jobs"))
    (tmp_path / "root").mkdir()
    (tmp_path / "home").mkdir()
    with start_lab(tmp_path / "root", tmp_path / "home") as lab:
        page = browser.new_page(viewport={"width": 1300, "height": 800})
        page.goto(f"{lab.url}lab?token={lab.token}")
        page.locator('.jp-SideBar li[data-id="dhlab-jobs"]').click(timeout=90_000)
        yield page.locator(".dhlab-jobs"), page
        page.close()


def test_jobs_are_listed_read_stopped_and_begun_again(panel):
    jobs, page = panel

    def work() -> None:
        print("first line\nsecond <b>line</b>", flush=True)
        report_progress(0.5, rate=1234.5, loss=math.nan, text="epoch 1")
        time.sleep(120)

    def fail() -> None:
        raise ValueError("no such tissue")

    jobs.locator("text=No jobs yet").wait_for()
    running, failing = submit(work, cluster="local", name="Übung"), submit(fail, cluster="local")
    row = jobs.locator(".dhlab-job", has_text="Übung")
    jobs.locator('.dhlab-job[data-state="failed"]', has_text="fail").wait_for(timeout=60_000)
    assert "no such tissue" in jobs.locator(".dhlab-job", has_text="fail").inner_text()
    row.locator("text=running").wait_for(timeout=60_000)
    row.locator("text=50 % · epoch 1 · 1,230/s").wait_for(timeout=60_000)
    row.locator(".dhlab-job-head").click()
    page.wait_for_function("document.querySelector('.dhlab-jobs-log').textContent.includes('second <b>line</b>')")
    assert row.locator(".dhlab-job-head").get_attribute("aria-expanded") == "true"
    keep_picture(page, "jobs_panel")
    assert row.locator("text=Resume").is_hidden()
    row.locator("button", has_text="Cancel").click()
    row.locator("text=cancelled").wait_for(timeout=60_000)
    assert running.state == "cancelled"
    row.locator("button", has_text="Resume").click()
    row.locator("text=/running|requeued|queued/").first.wait_for(timeout=60_000)
    running.cancel()
    assert failing.state == "failed"
