"""A training that is stopped ends as if it had never been stopped: bitwise, after kills at random moments too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dhlab.datasets import Dataset
from dhlab.errors import BadFileError, BadValueError, ConflictError, StorageError
from dhlab.models import create_model
from dhlab.training import fit
from dhlab.training.run import Run

KILLS = 20


class Unreadable:
    """Samples of which one cannot be read, until it is mended."""

    def __init__(self, samples, bad: int) -> None:
        self.samples, self.bad = samples, bad

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices):
        if self.bad in indices:
            raise BadFileError(f"slide-{self.bad}.png is damaged: expected a picture.")
        return self.samples.read(indices)

    def targets(self, indices):
        return self.samples.targets(indices)

    def fresh(self, index):
        return self.samples.fresh(index)


def some_data(count: int = 22, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(count) % 3)
    images = rng.integers(60, 120, (count, 20, 20, 3))
    images[np.arange(count), :, :, targets] += 30
    return Dataset.from_arrays(
        images.astype(np.uint8),
        targets,
        classes=("r", "g", "b"),
        task="classification",
        groups=[f"{seed}-{i}" for i in range(count)],
    )


def some_model():
    model = create_model("cnn", ("r", "g", "b"), tile=20, spacing=1.0, width=6, depth=2)
    model.net.head = torch.nn.Sequential(torch.nn.Dropout(0.3), model.net.head)
    return model


def train(folder: Path | None, **changes):
    """Three epochs with everything that has a state: momentum, averaging, accumulation, dropout, augmentation."""
    torch.set_num_threads(1)
    model = changes.pop("model", None) or some_model()
    data = changes.pop("data", None) or some_data()
    options = {"epochs": 3, "batch_size": 4, "averaging": 0.8, "accumulate": 2, "checkpoint_minutes": 0.0}
    val = changes.pop("val", None) or some_data(9, 1)
    report = fit(model, data, val, folder=folder, progress=False, **(options | changes))
    return model, report


@pytest.fixture(scope="module")
def uninterrupted():
    model, report = train(None)
    return model.digest(), without_time(report)


def without_time(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report.tables["Learning curve"]]


def test_a_folder_changes_nothing(uninterrupted, tmp_path):
    model, report = train(tmp_path)
    assert (model.digest(), without_time(report)) == uninterrupted


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 13])
def test_stopped_by_an_error_in_the_middle(uninterrupted, tmp_path, stop):
    """A listener that fails after some batches stands for any error; what was learned is there when called again."""

    class StopError(Exception):
        pass

    def listen(event):
        if event.kind == "step" and event.step == stop:
            raise StopError

    with pytest.raises(StopError):
        train(tmp_path, on_event=listen)
    model, report = train(tmp_path)
    assert (model.digest(), without_time(report)) == uninterrupted


def test_a_gradient_that_is_thrown_away_goes_with_all_its_batches(tmp_path):
    """Of three batches that make a step the first has no finite gradient; then it has, and all three count."""
    calls = []

    def train_hurt(folder, hurt):
        calls.clear()

        def loss(logits, targets):
            calls.append(None)
            value = torch.nn.functional.cross_entropy(logits, targets)
            return value + (logits * 0).abs().sqrt().sum() if len(calls) == hurt else value

        return train(folder, epochs=1, accumulate=3, loss=loss, precision="float32")[0].digest()

    with pytest.raises(BadValueError, match="gradient became"):
        train_hurt(tmp_path, hurt=4)
    assert train_hurt(tmp_path, hurt=0) == train_hurt(None, hurt=0)


@pytest.mark.parametrize("part", ["data", "val"])
def test_unreadable_sample_is_named_and_the_run_goes_on_when_it_is_mended(uninterrupted, tmp_path, part):
    samples = {"data": some_data(), "val": some_data(9, 1)}[part]
    damaged = replace(samples, samples=Unreadable(samples.samples, 7))
    model = some_model()
    with pytest.raises(BadFileError, match=r"slide-7\.png"):
        train(tmp_path, model=model, allow_leakage=True, **{part: damaged})
    # The same model goes on in the same session, as the same cell run again does.
    model, report = train(tmp_path, model=model)
    assert (model.digest(), without_time(report)) == uninterrupted


def test_interrupted_by_hand(uninterrupted, tmp_path):
    """Ctrl-C, or the kernel's stop button: the batch ends, its state is written, the cell can be run again."""

    def listen(event):
        if event.kind == "step" and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    model = some_model()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model=model, on_event=listen, checkpoint_minutes=60)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "last.safetensors").exists()
    model, report = train(tmp_path, model=model, checkpoint_minutes=60)
    assert (model.digest(), without_time(report)) == uninterrupted


def test_who_was_given_up_and_wakes_up_writes_no_more(uninterrupted, tmp_path):
    """One process stands still in the middle, as on a machine without contact; another goes on; the first wakes up."""
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_resuming import train

def listen(event):
    if event.kind == "step" and event.step == 5:
        os.kill(os.getpid(), signal.SIGSTOP)

train(Path({str(tmp_path)!r}), on_event=listen)
"""
    still = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    _, status = os.waitpid(still.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    model, report = train(tmp_path)
    assert (model.digest(), without_time(report)) == uninterrupted
    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    still.send_signal(signal.SIGCONT)
    _, told = still.communicate(timeout=60)
    assert still.returncode == 1
    assert "ConflictError: others have gone on with the training" in told
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_a_turn_that_was_taken_in_the_middle_of_a_write_stops_it(tmp_path, monkeypatch):
    identity = {"settings": {}, "model": {}, "data": {}}
    first, second = Run(tmp_path, identity), Run(tmp_path, identity)
    first.take_turn(first.last_turn() + 1)
    first.record([{"loss": 1.0}])
    # Both found that the next turn is 2, as when the first stands still while its workers agree on who they are.
    second.take_turn(2)
    with pytest.raises(ConflictError, match=r"turn 2 \w+, this worker has 2 \w+"):
        first.take_turn(2)
    second.record([{"loss": 0.5}])
    third = Run(tmp_path, identity)
    monkeypatch.setattr("dhlab.training.run.sync", lambda _: third.take_turn(3))
    with pytest.raises(ConflictError, match=r"turn 3 \w+, this worker has 2 \w+"):
        second.record([{"loss": 0.25}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss": 0.5}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "turn"]


def test_of_two_that_take_the_same_turn_at_once_one_writes(tmp_path, monkeypatch):
    first, second = (Run(tmp_path, {"settings": {}, "model": {}, "data": {}}) for _ in range(2))
    # Neither finds the other's turn.
    monkeypatch.setattr(Run, "last_turn", lambda _: 0)
    first.take_turn(1)
    second.take_turn(1)
    with pytest.raises(ConflictError, match="others have gone on"):
        first.record([{"loss": 1.0}])
    second.record([{"loss": 0.5}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss": 0.5}\n'


def test_only_the_first_worker_begins_anew_and_the_others_need_not_wait_for_it(tmp_path, monkeypatch):
    about = tmp_path / "run.json"
    about.write_text('{"settings": {"epochs": 2}}')
    identity = {"settings": {"epochs": 3}, "model": {}, "data": {}}
    monkeypatch.setattr("dhlab.training.run.is_main", lambda: False)
    Run(tmp_path, identity, overwrite=True)
    assert about.exists()
    monkeypatch.setattr("dhlab.training.run.is_main", lambda: True)
    Run(tmp_path, identity, overwrite=True)
    assert not about.exists()


def test_elastic_workers_keep_the_clock_and_the_state_in_time(monkeypatch):
    """What is kept in memory: at steps only, every ten batches or at the next step, and after each epoch."""
    steps, kept = [0], []

    def stay(work, *, keep, take, on_change):
        state = keep()
        state[2].seconds = 500.0
        # As one who comes later and becomes the first.
        take(state)

        def commit():
            kept.append((steps[-1], keep()[2]))

        work(commit)

    monkeypatch.setattr("dhlab.training.fitting.run_elastic", stay)
    monkeypatch.setattr("dhlab.training.fitting.is_shared", lambda: True)
    data = some_data(52)
    _, report = train(None, data=data, epochs=2, accumulate=3, on_event=lambda event: steps.append(event.step))
    # Of 13 batches in an epoch.
    assert [step for step, _ in kept] == [12, 13, 25]
    assert [(progress.epoch, progress.number) for _, progress in kept] == [(0, 12), (1, 0), (1, 12)]
    assert 500 < kept[0][1].seconds < kept[1][1].seconds < kept[2][1].seconds < report.values["seconds"] < 600


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_at_random_moments(uninterrupted, tmp_path, number):
    """Twenty processes train the same run, each killed at a moment drawn at random; the last one finishes it."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_resuming import train
from pathlib import Path
train(None, epochs=1)
for line in sys.stdin:
    child = os.fork()
    if not child:
        model, _ = train(Path({str(tmp_path)!r}))
        Path({str(tmp_path / "digest")!r}).write_text(model.digest())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    rng = np.random.default_rng(int(number))
    killed = 0
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        while not (tmp_path / "digest").exists():
            parent.stdin.write("go\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            if killed < KILLS:
                time.sleep(rng.uniform(0, 0.05))
                os.kill(child, number)
            status = int(parent.stdout.readline())
            killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == number
        parent.stdin.close()
    assert killed >= KILLS * 3 // 4
    assert (tmp_path / "digest").read_text() == uninterrupted[0]
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_disk_full_at_a_checkpoint(uninterrupted, tmp_path):
    """The last state that could be written stays, and the run continues where there is room."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount a file system")
    try:
        filler = small / "filler"

        def listen(event):
            if event.kind == "step" and event.step == 4:
                free = os.statvfs(small)
                filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_bsize - 4096))

        model = some_model()
        with pytest.raises(StorageError, match="disk is full"):
            train(small, model=model, on_event=listen)
        assert not list(small.glob(".*.partial"))
        filler.unlink()
        model, report = train(small)
        assert (model.digest(), without_time(report)) == uninterrupted
    finally:
        subprocess.run(["umount", small], check=True)
