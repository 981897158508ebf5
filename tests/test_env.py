"""Environment variables: one table, checked values."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhlab import env
from dhlab.errors import BadValueError


def test_a_wrong_choice_names_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHLAB_KERNELS", "cuda")
    with pytest.raises(BadValueError, match="auto, triton, cpu, torch"):
        env.get("DHLAB_KERNELS")
    monkeypatch.setenv("DHLAB_KERNELS", "")
    assert env.get("DHLAB_KERNELS") == "auto"


@pytest.mark.parametrize("value", ["0", "-2", "many", "1.5"])
def test_threads_must_be_a_positive_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DHLAB_THREADS", value)
    with pytest.raises(BadValueError, match="at least 1"):
        env.thread_count()


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DHLAB_DATA", str(tmp_path))
    monkeypatch.setenv("DHLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DHLAB_THREADS", "3")
    assert env.data_folder() == tmp_path
    assert env.cache_folder() == tmp_path / "cache"
    assert env.thread_count() == 3
    assert not (tmp_path / "cache").exists()
