"""Stains: every form against the float64 reference, and that against scikit-image, torchstain and scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dhlab
from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.kernels import (
    ColourStatistics,
    Stains,
    combine_stains,
    combine_stains_reference,
    macenko_fit,
    macenko_fit_reference,
    normalize_stain,
    normalize_stain_reference,
    reinhard_fit,
    reinhard_fit_reference,
    separate_stains,
    separate_stains_reference,
    vahadane_fit,
    vahadane_fit_reference,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FITS = {"macenko": macenko_fit, "reinhard": reinhard_fit, "vahadane": vahadane_fit}
REFERENCES = {"macenko": macenko_fit_reference, "reinhard": reinhard_fit_reference, "vahadane": vahadane_fit_reference}
# Heights and widths: single pixels and lines, less and more than a vector, primes, more than a chunk of the C form.
SHAPES = [(1, 63), (37, 1), (13, 17), (131, 137)]
# Unit vectors from float32 sums over tissue, on images where stains lie 0.3 rad apart; the Triton form stops where a
# percentile is known to 2e-5 of an angle and 4e-4 of an amount, far below what moves a grey level.
DIRECTION = {"torch": 1e-6, "cpu": 3e-5, "triton": 1e-3}
AMOUNT = {"torch": 1e-5, "cpu": 3e-4, "triton": 3e-3}


def tissue(shape: tuple[int, ...], *, seed: int = 0, background: float = 0.2) -> torch.Tensor:
    """Return ``(*shape, 3)`` bytes: amounts of two stains of this seed's colours, noise, and some white."""
    generator = torch.Generator().manual_seed(seed)
    stains = torch.tensor([[0.60, 0.70, 0.38], [0.20, 0.90, 0.40]], dtype=torch.float64)
    stains += 0.08 * (torch.rand(2, 3, generator=generator, dtype=torch.float64) - 0.5)
    amounts = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) ** 2 * torch.tensor([2.2, 1.6])
    density = amounts @ stains + 0.02 * torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    white = torch.rand(*shape, 1, generator=generator) < background
    levels = torch.where(white, 245.0, 240 * torch.exp(-density) - 1)
    return levels.round().clamp(0, 255).to(torch.uint8).to(DEVICE)


@pytest.fixture
def slide(skin_slide: Path) -> torch.Tensor:
    """Return ``(4, 192, 192, 3)`` bytes of real skin in haematoxylin and eosin."""
    scan = dhlab.open(skin_slide)
    tiles = [scan.read((y, x), (192, 192)) for y, x in ((900, 1200), (1900, 1200), (700, 1400), (2100, 800))]
    return torch.from_numpy(np.stack(tiles)).to(DEVICE)


def spare_the_interpreter(form: str, method: str) -> None:
    """Leave to the other forms what takes Triton's interpreter minutes: a dictionary's thirty sweeps."""
    if form == "triton" and method == "vahadane" and DEVICE == "cpu":
        pytest.skip("slow in Triton's interpreter; another test runs this kernel")


def kind(form: str) -> str:
    return form.partition("-")[0]


def moved(images: torch.Tensor) -> torch.Tensor:
    return images.movedim(-1, 1)


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.int() - b.int()).abs()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_fits_equal_the_reference(form: str, method: str, shape: tuple[int, int]) -> None:
    if shape != (131, 137):
        spare_the_interpreter(form, method)
    images = torch.stack([tissue(shape, seed=seed) for seed in range(2)])
    fit, expected = FITS[method](images), REFERENCES[method](moved(images))
    assert fit.fitted.tolist() == expected.fitted.tolist()
    torch.testing.assert_close(fit.matrix, expected.matrix, rtol=0, atol=DIRECTION[kind(form)])
    torch.testing.assert_close(fit.most, expected.most, rtol=AMOUNT[kind(form)], atol=AMOUNT[kind(form)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tissue_only", [True, False])
def test_colours_equal_the_reference(form: str, shape: tuple[int, int], tissue_only: bool) -> None:
    images = torch.stack([tissue(shape, seed=seed) for seed in range(2)])
    fit = reinhard_fit(images, tissue=tissue_only)
    expected = reinhard_fit_reference(moved(images), tissue=tissue_only)
    assert fit.fitted.tolist() == expected.fitted.tolist()
    # Means of float32 sums over 18,000 pixels; a spread is the root of a difference of two such sums.
    torch.testing.assert_close(fit.mean, expected.mean, rtol=0, atol=5e-6)
    torch.testing.assert_close(fit.spread, expected.spread, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", list(FITS))
def test_tiles_of_a_slide_are_fitted_together(form: str, method: str) -> None:
    spare_the_interpreter(form, method)
    images = torch.stack([tissue((23, 29), seed=1, background=share) for share in (0.1, 0.9, 0.5)])
    together, one = FITS[method](images, together=True), FITS[method](images.reshape(1, 69, 29, 3))
    planar = FITS[method](moved(images).contiguous(), together=True, channel_axis=1)
    assert len(together) == 1
    for fit in (together, planar):
        for name in ("mean", "spread") if method == "reinhard" else ("matrix", "most"):
            torch.testing.assert_close(getattr(fit, name), getattr(one, name), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", list(FITS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (131, 137)])
def test_changes_equal_the_reference(form: str, method: str, shape: tuple[int, int]) -> None:
    spare_the_interpreter(form, method)
    images = torch.stack([tissue(shape, seed=seed) for seed in range(2)])
    aim = FITS[method](tissue((64, 64), seed=9)[None])
    source = FITS[method](images)
    expected = normalize_stain_reference(moved(images), source, aim)
    for result in (
        normalize_stain(images, aim, method=method),
        normalize_stain(images, aim, method=method, source=source),
    ):
        # A level that lies on the edge between two falls to either side in float32.
        assert difference(moved(result), expected).max() <= 1
        assert difference(moved(result), expected).double().mean() <= 0.01


@pytest.mark.parametrize("method", list(FITS))
def test_layouts_and_strides(form: str, method: str) -> None:
    spare_the_interpreter(form, method)
    wide = tissue((2, 60, 150), seed=4)
    aim = FITS[method](tissue((64, 64), seed=9)[None])
    views = {
        "planar": wide[:, :40, 20:90].movedim(-1, 1).contiguous(),
        "crop": wide[:, :40, 20:90],
        "every other": wide[:, :40:2, 20:90:2],
        "reversed axes": wide[:, :40, 20:90].transpose(1, 2),
        "last of four": torch.cat([wide, wide[..., :1]], -1)[:, :40, 20:90, :3],
    }
    if form == "triton" and DEVICE == "cpu":
        views = {name: views[name] for name in ("planar", "reversed axes")}
    for name, view in views.items():
        axis = 1 if name == "planar" else -1
        dense = view.movedim(axis, -1).contiguous()
        expected = normalize_stain(dense, aim, method=method).movedim(-1, axis)
        result = normalize_stain(view, aim, method=method, channel_axis=axis)
        # Sums over other stretches of pixels round otherwise.
        assert difference(result, expected).max() <= 1, name
        assert difference(result, expected).double().mean() < 0.01, name
        around = torch.full((2, *(n + 3 for n in view.shape[1:])), 7, dtype=torch.uint8, device=DEVICE)
        out = around[:, : view.shape[1], : view.shape[2], : view.shape[3]]
        assert normalize_stain(view, aim, method=method, channel_axis=axis, out=out) is out
        assert torch.equal(out, result), name
        assert (around[:, view.shape[1] :] == 7).all()
        assert (around[:, :, view.shape[2] :] == 7).all()


def test_in_place(form: str) -> None:
    images = tissue((2, 33, 65))
    expected = normalize_stain(images)
    assert normalize_stain(images, out=images) is images
    assert torch.equal(images, expected)


def background(name: str) -> torch.Tensor:
    """Return an image without two stains."""
    one = torch.tensor([0.60, 0.70, 0.38], dtype=torch.float64)
    images = {
        "white": torch.full((40, 40, 3), 255.0),
        "black": torch.zeros(40, 40, 3),
        "grey": torch.full((40, 40, 3), 128.0),
        "few pixels": torch.cat([tissue((3, 5), background=0).cpu(), torch.full((3, 5, 3), 250)], 1),
        "one stain": (240 * torch.exp(-one) - 1).expand(40, 40, 3),
        "fifteen": torch.cat([tissue((1, 15), background=0).cpu(), torch.full((30, 15, 3), 255)]),
    }
    return images[name].round().to(torch.uint8).to(DEVICE)


@pytest.mark.parametrize("name", ["white", "black", "grey", "few pixels", "one stain", "fifteen"])
@pytest.mark.parametrize("method", list(FITS))
def test_what_cannot_be_fitted_is_unchanged(form: str, method: str, name: str) -> None:
    spare_the_interpreter(form, method)
    if form == "triton" and DEVICE == "cpu" and name in ("black", "grey", "few pixels"):
        pytest.skip("slow in Triton's interpreter; another case runs this kernel")
    image = background(name)
    other = tissue(tuple(image.shape[:2]), seed=3, background=0)
    images = torch.stack([image, other, image])
    aim = FITS[method](tissue((64, 64), seed=9)[None])
    source = FITS[method](images)
    result = normalize_stain(images, aim, method=method)
    spread = name == "few pixels" and method == "reinhard"
    if not spread:
        assert source.fitted.tolist()[::2] == [False, False]
        assert torch.equal(result[0], image)
        assert torch.equal(normalize_stain(images, aim, method=method, source=source)[0], image)
    for values in (source.map_to(aim).unmix, source.map_to(aim).mix):
        assert values.isfinite().all()


@pytest.mark.parametrize("method", list(FITS))
def test_empty_batches(form: str, method: str) -> None:
    images = torch.empty((0, 8, 9, 3), dtype=torch.uint8, device=DEVICE)
    assert len(FITS[method](images)) == 0
    assert not FITS[method](images, together=True).fitted.any()
    aim = FITS[method](tissue((64, 64))[None])
    assert normalize_stain(images, aim, method=method).shape == (0, 8, 9, 3)
    assert separate_stains(images).shape == (0, 8, 9, 3)


def test_reinhard_to_itself_is_the_identity(form: str, slide: torch.Tensor) -> None:
    for tile in slide[:2, None]:
        result = normalize_stain(tile, tile[0], method="reinhard")
        assert difference(result, tile).max() <= 1


def test_every_colour_survives_reinhard_to_itself() -> None:
    levels = torch.tensor([0, 1, 2, 5, 30, 100, 180, 205, 230, 255], dtype=torch.uint8)
    every = torch.cartesian_prod(levels, levels, levels).view(1, 25, 40, 3).to(DEVICE)
    fit = reinhard_fit(every)
    assert difference(normalize_stain(every, fit, method="reinhard", source=fit), every).max() <= 1


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_two_stains_to_themselves_are_the_identity(form: str, method: str, slide: torch.Tensor) -> None:
    """Two stains span a plane; an image is brought there first, and what clips has no way back."""
    spare_the_interpreter(form, method)
    flat = normalize_stain(slide[:2], method=method)
    flat = flat[:, :96, :96].clamp(8, 235)
    fit = Stains.preset("macenko")
    once = normalize_stain(flat, fit, method=method, source=fit)
    again = normalize_stain(once, fit, method=method, source=fit)
    # A dark level is a coarse logarithm, whose share in the other channels is more than a level there.
    kept = (once.amin(-1) >= 40) & (once.amax(-1) < 250)
    assert kept.double().mean() > 0.2
    assert difference(again, once)[kept].max() <= 1


@pytest.mark.parametrize("method", list(FITS))
def test_the_order_of_pixels_does_not_matter(form: str, method: str) -> None:
    spare_the_interpreter(form, method)
    image = tissue((64, 80), seed=2).view(-1, 3)
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    aim = FITS[method](tissue((64, 64), seed=9)[None])
    plain = normalize_stain(image.view(1, 64, 80, 3), aim, method=method)
    shuffled = normalize_stain(image[order].view(1, 64, 80, 3), aim, method=method)
    gap = difference(shuffled.view(-1, 3), plain.view(-1, 3)[order])
    assert gap.max() <= 1
    assert gap.double().mean() < 0.01


@pytest.mark.parametrize("method", list(FITS))
@pytest.mark.parametrize("form", ["cpu-avx512"], indirect=True)
def test_threads_change_nothing(form: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tissue((3, 300, 311), seed=5)
    aim = FITS[method](tissue((64, 64), seed=9)[None])
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        results.append((normalize_stain(images, aim, method=method), FITS[method](images, together=True)))
    for changed, fit in results[1:]:
        assert torch.equal(changed, results[0][0])
        for name in ("mean", "spread") if method == "reinhard" else ("matrix", "most"):
            assert torch.equal(getattr(fit, name), getattr(results[0][1], name))


def test_a_sample_that_misleads_costs_only_time(form: str) -> None:
    """Pixels that a regular sample does not meet, in numbers that overflow what a bracket keeps."""
    image = tissue((512, 513), seed=6)
    image[100:400] = tissue((300, 513), seed=7)[..., [0, 2, 1]].sort(0).values
    image[::2, ::3] = torch.tensor([120, 60, 140], dtype=torch.uint8, device=DEVICE)
    fit, expected = macenko_fit(image[None]), macenko_fit_reference(moved(image[None]))
    torch.testing.assert_close(fit.matrix, expected.matrix, rtol=0, atol=DIRECTION[kind(form)])
    torch.testing.assert_close(fit.most, expected.most, rtol=AMOUNT[kind(form)], atol=AMOUNT[kind(form)])


def test_macenko_equals_torchstain(slide: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    torchstain = pytest.importorskip("torchstain")
    theirs = torchstain.normalizers.MacenkoNormalizer(backend="torch")
    theirs.HERef, theirs.maxCRef = theirs.HERef.double(), theirs.maxCRef.double()
    result = normalize_stain(slide).cpu()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for mine, tile in zip(result, slide.cpu(), strict=True):
        expected, _, _ = theirs.normalize(tile.movedim(-1, 0), stains=False)
        gap = difference(mine, expected)
        assert gap.max() <= 1
        assert gap.double().mean() <= 0.02


def test_reinhard_is_not_the_one_in_cielab(slide: torch.Tensor) -> None:
    """The paper's space has a logarithm where CIELAB has a cube root: grey levels differ, looks hardly."""
    torchstain = pytest.importorskip("torchstain")
    theirs = torchstain.normalizers.ReinhardNormalizer(backend="numpy")
    target = slide[1].cpu().numpy()
    theirs.fit(target)
    aim = reinhard_fit(slide[1:2], tissue=False)
    mine = normalize_stain(slide[:1], aim, method="reinhard", source=reinhard_fit(slide[:1], tissue=False))
    gap = difference(mine[0].cpu(), torch.from_numpy(theirs.normalize(slide[0].cpu().numpy())))
    assert 0.5 < gap.double().mean() < 12


def test_the_dictionary_minimises_what_scikit_learn_minimises() -> None:
    learning = pytest.importorskip("sklearn.decomposition")
    image = tissue((40, 50), seed=8)
    fit = vahadane_fit_reference(moved(image[None]))
    density = -np.log((image.cpu().numpy().reshape(-1, 3) + 1.0) / 240)
    density = density[(density >= 0.15).all(1)]
    _, theirs, _ = learning.dict_learning(
        density,
        2,
        alpha=0.1,
        max_iter=300,
        tol=1e-10,
        method="cd",
        positive_dict=True,
        positive_code=True,
        dict_init=Stains.preset("macenko").matrix[0].numpy().astype(np.float64),
        code_init=np.zeros((len(density), 2)),
        random_state=0,
    )
    np.testing.assert_allclose(fit.matrix[0].cpu().numpy(), theirs[np.argsort(-theirs[:, 0])], atol=1e-3)


@pytest.mark.parametrize("preset", ["hed", "hdx"])
def test_separation_equals_scikit_image(form: str, preset: str, slide: torch.Tensor) -> None:
    colour = pytest.importorskip("skimage.color")
    forward = {"hed": colour.hed_from_rgb, "hdx": colour.hdx_from_rgb}[preset]
    back = {"hed": colour.rgb_from_hed, "hdx": colour.rgb_from_hdx}[preset]
    tile = slide[:1, :64, :61]
    amounts = separate_stains(tile, preset)
    expected = colour.separate_stains(tile[0].cpu().numpy(), forward) * math.log(1e6)
    np.testing.assert_allclose(amounts[0].cpu().numpy(), expected, atol=2e-5)
    light = combine_stains(amounts, preset)
    again = colour.combine_stains(expected / math.log(1e6), back)
    np.testing.assert_allclose(light[0].cpu().numpy(), again, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (37, 1), (13, 17), (61, 67)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("axis", [-1, 1])
def test_separating_and_combining(form: str, shape: tuple[int, int], dtype: torch.dtype, axis: int) -> None:
    images = tissue((2, *shape)).movedim(-1, axis)
    images = images if dtype == torch.uint8 else (images.float() / 255).to(dtype)
    for stains in (Stains.preset("hed"), macenko_fit(tissue((64, 64))[None])):
        count = len(stains.names)
        both = Stains(
            stains.matrix.cpu().expand(2, -1, -1), None, torch.ones(2, dtype=torch.bool), stains.names, stains.white,
            stains.offset, stains.floor,
        )  # fmt: skip
        wide = images.movedim(axis, 1).double() / (255 if dtype == torch.uint8 else 1)
        expected = separate_stains_reference(wide, both.to(DEVICE))
        amounts = separate_stains(images, stains, channel_axis=axis)
        assert amounts.movedim(axis, 1)[0, 0].is_contiguous()
        # Amounts are up to 14 times a weight of 2 from logarithms good to 5e-7.
        torch.testing.assert_close(amounts.movedim(axis, 1).double(), expected, rtol=1e-5, atol=3e-5)
        light = combine_stains(amounts, stains, channel_axis=axis)
        assert light.shape[axis] == 3
        assert amounts.shape[axis] == count
        lit = combine_stains_reference(amounts.movedim(axis, 1).double(), both.to(DEVICE))
        torch.testing.assert_close(light.movedim(axis, 1).double(), lit, rtol=1e-5, atol=3e-6)


def test_separating_into_out(form: str) -> None:
    images, out = tissue((2, 20, 30)), torch.full((2, 20, 30, 3), math.nan, device=DEVICE)
    assert separate_stains(images, out=out) is out
    torch.testing.assert_close(out, separate_stains(images), rtol=1e-5, atol=1e-5)
    assert combine_stains(out, out=out) is out
    assert out.isfinite().all()


def test_gradients_reach_images_and_amounts() -> None:
    light = torch.rand(1, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    fit = Stains.preset("macenko")
    assert torch.autograd.gradcheck(lambda x: separate_stains(x, fit), light.requires_grad_())
    amounts = (torch.rand(1, 3, 4, 3, dtype=torch.float64) * 0.3 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: combine_stains(a, "hed"), amounts)


def test_gradients_of_float32(form: str) -> None:
    light = (torch.rand(1, 5, 4, 3, device=DEVICE) * 0.5 + 0.2).requires_grad_()
    combine_stains(separate_stains(light)).sum().backward()
    assert light.grad is not None
    # Where no amount is cut off, putting together undoes taking apart.
    kept = (separate_stains(light.detach()) > 0).all(-1, keepdim=True).expand_as(light)
    torch.testing.assert_close(light.grad[kept], torch.ones_like(light.grad[kept]), rtol=1e-4, atol=1e-4)


def test_values() -> None:
    fit = macenko_fit(tissue((2, 32, 32)))
    assert "2 of" not in repr(Stains.preset("hed"))
    assert "2 images, 2 fitted" in repr(fit)
    assert fit._repr_html_().count("<td") == 4
    assert "and 2 more" in macenko_fit(tissue((10, 8, 8)))._repr_html_()
    assert "1 images" in repr(reinhard_fit(tissue((1, 32, 32))))
    assert fit.to("cpu").matrix.device.type == "cpu"
    change = fit.map_to(Stains.preset("macenko").to(DEVICE))
    assert len(change) == 2
    assert change.pack().shape == (2, 45)


def test_an_unfitted_image_keeps_its_colours_in_a_map() -> None:
    from dhlab.kernels.density import through_density_reference

    light = torch.rand(2, 3, 50, device=DEVICE) * 0.98 + 0.01
    white = torch.full((2, 8, 8, 3), 255, dtype=torch.uint8, device=DEVICE)
    change = macenko_fit(white).map_to(Stains.preset("macenko").to(DEVICE))
    assert (through_density_reference(light, change) - light).abs().max() < 1.01 / 255
    change = reinhard_fit(white).map_to(reinhard_fit(tissue((1, 32, 32))))
    torch.testing.assert_close(through_density_reference(light, change), light, rtol=0, atol=3e-3)


@pytest.mark.parametrize("call", [macenko_fit, reinhard_fit, vahadane_fit, normalize_stain, separate_stains])
@pytest.mark.parametrize("shape", [(8, 9, 3), (2, 8, 9, 4), (2, 3, 8, 9)])
def test_refuses_other_shapes(call, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadShapeError, match="expected"):
        call(torch.zeros(shape, dtype=torch.uint8))


def test_refuses_what_does_not_fit() -> None:
    images = tissue((2, 32, 32))
    white = torch.full((32, 32, 3), 255, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(BadShapeError, match="uint8"):
        macenko_fit(images.float())
    with pytest.raises(UnknownNameError, match="macenko"):
        normalize_stain(images, method="macenco")
    with pytest.raises(UnknownNameError, match="hed"):
        separate_stains(images, "hde")
    with pytest.raises(BadValueError, match="could not be fitted"):
        normalize_stain(images, white)
    with pytest.raises(BadValueError, match="needs ColourStatistics"):
        normalize_stain(images, "macenko", method="reinhard")
    with pytest.raises(BadValueError, match="largest amounts"):
        normalize_stain(images, "hed")
    with pytest.raises(BadValueError, match="needs Stains"):
        normalize_stain(images, source=reinhard_fit(images))
    with pytest.raises(BadShapeError, match="3 fits for 2 images"):
        normalize_stain(images, source=macenko_fit(tissue((3, 16, 16))))
    with pytest.raises(BadShapeError, match="out is"):
        normalize_stain(images, out=torch.empty_like(images[:1]))
    with pytest.raises(BadShapeError, match="stains on axis"):
        combine_stains(torch.zeros(2, 4, 5, 2))
    with pytest.raises(BadShapeError, match="matrix of the stains"):
        Stains(torch.zeros(2, 3), None, torch.ones(2, dtype=torch.bool))
    with pytest.raises(BadShapeError, match="spread of the colours"):
        ColourStatistics(torch.zeros(2, 3), torch.zeros(1, 3), torch.ones(2, dtype=torch.bool))


def test_torch_sees_operators() -> None:
    images, fits = moved(tissue((2, 9, 11)).cpu()), torch.zeros(2, 9)
    fit = macenko_fit(images, channel_axis=1)
    change = fit.map_to(Stains.preset("macenko"))
    operators = torch.ops.dhlab
    torch.library.opcheck(operators.fit_stain.default, (images, 0, [240.0, 0.15, 1.0, 0.1, 240.0], 1, fits))
    arguments = (images, change.pack(), fit.fitted, False, [1 / 255, 1e-6, 0.0], torch.zeros_like(images))
    torch.library.opcheck(operators.map_stain.default, arguments)
    arguments = (images, torch.zeros(2, 15), True, [0.0, 1e-6], torch.zeros(2, 3, 9, 11))
    torch.library.opcheck(operators.convert_stain.default, arguments)
    reference = torch.tensor([[0.5626, 0.7201, 0.4062, 0.2159, 0.8012, 0.5581, 1.9705, 1.0308, 1]]).repeat(2, 1)
    arguments = (images, reference, 0, [240.0, 0.15, 1.0, 0.1, 240.0], torch.zeros_like(images))
    torch.library.opcheck(operators.normalize_stain.default, arguments)


def test_compiled_graphs_do_not_break() -> None:
    images = tissue((2, 24, 25)).cpu()
    compiled = torch.compile(lambda x: normalize_stain(x) // 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), normalize_stain(images) // 2)
    compiled = torch.compile(lambda x: separate_stains(x) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), separate_stains(images) * 2)


@pytest.mark.gpu
def test_more_than_two_thousand_million_pixels() -> None:
    """Offsets beyond int32."""
    images = torch.full((1, 27_000, 27_000, 3), 255, dtype=torch.uint8, device="cuda")
    images[:, -64:, -64:] = tissue((1, 64, 64))
    fit = macenko_fit(images[:, -64:, -64:])
    assert torch.equal(
        normalize_stain(images, source=fit)[:, -64:, -64:], normalize_stain(images[:, -64:, -64:], source=fit)
    )


def test_one_fit_serves_a_batch(form: str) -> None:
    """Also where it is a view of memory in which the next fit failed."""
    images = tissue((3, 13, 17))
    fit = macenko_fit(images[:1])
    flags = torch.tensor([True, False, False], device=DEVICE)
    shared = replace(fit, fitted=flags[:1])
    together = normalize_stain(images, "macenko", source=shared)
    for image, result in zip(images, together, strict=True):
        assert torch.equal(normalize_stain(image[None], "macenko", source=fit)[0], result)
        assert not torch.equal(image, result)
