"""`Trainer`: the loop of one's own that the documentation shows, and the pieces that it is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhlab.datasets import Dataset
from dhlab.errors import BadShapeError, BadValueError
from dhlab.models import create_model
from dhlab.training import Batch, Settings, Trainer, fit


def some_data(count: int = 26) -> Dataset:
    rng = np.random.default_rng(0)
    targets = np.arange(count) % 2
    images = rng.integers(60, 120, (count, 16, 16, 3))
    images[:, :, :, 0] += 40 * targets[:, None, None]
    return Dataset.from_arrays(images.astype(np.uint8), targets, classes=("no", "yes"), task="classification")


def some_model(**options):
    return create_model("cnn", ("no", "yes"), **({"tile": 16, "spacing": 1.0, "width": 4, "depth": 2} | options))


def test_a_loop_of_ones_own_is_fit():
    """The ten lines of the docstring give the very weights that `fit` gives."""
    data, model = some_data(), some_model()
    trainer = Trainer(model, data, Settings(epochs=3, batch_size=8))
    for epoch in range(3):
        for batch in trainer.loader.batches(epoch):
            loss = trainer.train_batch(batch)
        scores = trainer.score(data)
    trainer.close()
    other = some_model()
    report = fit(other, data, epochs=3, batch_size=8, progress=False)
    assert model.digest() == other.digest()
    assert loss < 1
    assert set(scores) == {"validation loss", "balanced accuracy"}
    assert report.tables["Learning curve"][-1]["epoch"] == 3


def test_eval_batch_leaves_everything_as_it_is():
    data, model = some_data(), some_model()
    trainer = Trainer(model, data)
    before = model.digest()
    images, targets = data.batch(range(5))
    logits = trainer.eval_batch(Batch(images, targets, np.arange(5)))
    assert logits.shape == (5, 2)
    assert model.digest() == before
    assert model.training
    model.eval()
    with torch.inference_mode():
        assert torch.allclose(logits, model.logits(torch.from_numpy(images)), atol=0.05)


def test_accumulated_batches_are_one_large_batch():
    """Without batch statistics, four batches of 3 whose gradients are averaged move the weights as one of 12 does."""
    data = some_data(24)
    moved = []
    for size, together in ((12, 1), (3, 4)):
        model = some_model()
        for module in model.net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.track_running_stats = False
        model.net.stages = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 3)
        )
        torch.manual_seed(0)
        for parameter in model.net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        settings = Settings(
            epochs=2, batch_size=size, accumulate=together, augment=False, precision="float32", class_weights="none"
        )
        trainer = Trainer(model, data, settings)
        for epoch in range(2):
            for batch in trainer.loader.batches(epoch):
                trainer.train_batch(batch, done=0.5)
        trainer.close()
        moved.append(torch.cat([p.detach().flatten() for p in model.net.parameters()]))
    assert torch.allclose(moved[0], moved[1], atol=1e-5)


def test_a_state_is_taken_back_whole_after_a_batch_that_was_never_ended():
    """As where a worker is lost between the backward pass and the step: what it left counts no more."""
    moved = []
    for broken in (False, True):
        model = some_model()
        trainer = Trainer(model, some_data(), Settings(batch_size=8, optimizer="sgd"), device="cpu")
        first, second, *_ = trainer.loader.batches(0)
        trainer.train_batch(first)
        kept, extra = trainer.state()
        if broken:
            model.logits(torch.from_numpy(second.images)).square().sum().backward()
            trainer.load_state(kept, extra)
        trainer.train_batch(second)
        moved.append(model.digest())
    assert moved[0] == moved[1]


def test_a_state_is_a_copy_on_the_cpu():
    trainer = Trainer(some_model(), some_data(), Settings(batch_size=8, averaging=0.5))
    first, second, *_ = trainer.loader.batches(0)
    trainer.train_batch(first)
    kept = trainer.state()[0] | {f"weights.{name}": tensor for name, tensor in trainer.weights().items()}
    before = {name: tensor.clone() for name, tensor in kept.items()}
    trainer.train_batch(second)
    assert all(tensor.device.type == "cpu" and torch.equal(tensor, before[name]) for name, tensor in kept.items())


def test_fewer_samples_than_workers_are_refused_unless_workers_come_and_go(monkeypatch):
    monkeypatch.setattr("dhlab.training.trainer.size", lambda: 4)
    with pytest.raises(BadValueError, match="batch_size 2 of 4 workers"):
        Trainer(some_model(), some_data(), Settings(batch_size=2))
    monkeypatch.setattr("dhlab.training.trainer.is_elastic", lambda: True)
    assert Trainer(some_model(), some_data(), Settings(batch_size=2)).loader.world == 4


def test_sample_weights_are_checked():
    data = some_data(8)
    with pytest.raises(BadShapeError, match="one per sample"):
        Trainer(some_model(), data, sample_weights=[1.0])
    with pytest.raises(BadValueError, match="negative or infinite"):
        Trainer(some_model(), data, sample_weights=[1.0] * 7 + [-1.0])


def test_averaged_weights_follow_the_definition():
    data, model = some_data(16), some_model()
    trainer = Trainer(model, data, Settings(epochs=1, batch_size=8, averaging=0.5))
    name = "net.head.weight"
    mean = model.state_dict()[name].clone()
    for step, batch in enumerate(trainer.loader.batches(0)):
        trainer.train_batch(batch)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * model.state_dict()[name]
    assert torch.allclose(trainer.averaged.weights[name], mean, atol=1e-7)
    own = model.digest()
    with trainer.averaged.lent():
        assert torch.allclose(model.state_dict()[name], mean, atol=1e-7)
    assert model.digest() == own


def test_dropout_depends_on_the_batch_alone():
    """The random draws of a batch are the same whatever was drawn before it."""
    data = some_data(16)
    losses = []
    for disturb in (False, True):
        model = some_model()
        model.net.head = torch.nn.Sequential(torch.nn.Dropout(0.5), model.net.head)
        trainer = Trainer(model, data, Settings(batch_size=8, augment=False))
        if disturb:
            torch.rand(17)
        losses.append([trainer.train_batch(batch) for batch in trainer.loader.batches(0)])
    assert losses[0] == losses[1]
