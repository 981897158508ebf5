"""The table of jobs in a real JupyterLab: it moves by itself, shows a log, cancels and resumes."""

from __future__ import annotations

import pytest
from screens import keep_picture

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SUBMIT = """
import os
os.environ["DHLAB_JOBS"] = os.path.abspath("jobs")
import dhlab as dh

def learn(seconds):
    import time
    from dhlab.progress import report_progress
    for step in range(20 * seconds):
        print("step", step, flush=True)
        report_progress(step / (20 * seconds), rate=123.4, seconds_left=60.0, loss=0.5, text="epoch 1")
        time.sleep(0.05)

dh.submit(int, "seven", cluster="local", name="broken").wait()
dh.submit(learn, 30, cluster="local", name="tumour-classifier", workers=1)
dh.jobs()
"""


def test_the_table_lives(page, lab, watch):
    lab.write("jobs.ipynb", [SUBMIT])
    page.goto(f"{lab.url}lab/tree/jobs.ipynb?reset&token={lab.token}")
    page.wait_for_selector("text=/\\| Idle/", timeout=90_000)
    page.click(".jp-Notebook .jp-Cell >> nth=0 >> .cm-content")
    page.keyboard.press("Shift+Enter")
    cell = page.locator(".jp-Notebook .jp-Cell >> nth=0")
    row = cell.locator("tr", has_text="tumour-classifier")
    row.locator("text=running").wait_for(timeout=90_000)
    cell.locator("tr", has_text="broken").locator("text=invalid literal").wait_for()
    bar = row.locator("progress")
    first = float(bar.get_attribute("value"))
    page.wait_for_function(
        """(first) => [...document.querySelectorAll("tr progress")].some((bar) => bar.value > first)""",
        arg=first,
        timeout=30_000,
    )
    row.locator("text=123/s").wait_for()
    cell.locator("button", has_text="Log").click()
    cell.locator("[role=log]", has_text="step").wait_for()
    keep_picture(page, "jobs_table")
    cell.locator("button", has_text="Cancel").click()
    row.locator("text=cancelled").wait_for(timeout=30_000)
    cell.locator("button", has_text="Resume").click()
    row.locator("text=running").wait_for(timeout=30_000)
    cell.locator("button", has_text="Cancel").click()
    row.locator("text=cancelled").wait_for(timeout=30_000)
    assert not watch.external
    assert not [error for error in watch.errors if "favicon" not in error]
