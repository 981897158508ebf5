"""Nobody sees a file that is not theirs to see: roots, links, tokens, label pictures."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhlab.io.openslide import associated_images
from dhlab.io.pool import Stamp

pytest.importorskip("dhlab_lab")
from dhlab_lab.access import Access, Refused
from dhlab_lab.views import File


def status_of(error: pytest.ExceptionInfo[Refused]) -> int:
    return int(error.value.status_code)


@pytest.fixture(scope="module")
def outside(server, phantom, tmp_path_factory) -> Path:
    """Return a slide beside the server's folder, with links to it from inside."""
    folder = tmp_path_factory.mktemp("outside")
    path = folder / "secret.svs"
    path.write_bytes(phantom.read_bytes())
    (server.folder / "link.svs").symlink_to(path)
    (server.folder / "folder").symlink_to(folder)
    (server.folder / "round.svs").symlink_to("round.svs")
    # A name that begins like the root's is another folder.
    twin = Path(f"{server.folder}2")
    twin.mkdir()
    (twin / "secret.svs").write_bytes(phantom.read_bytes())
    return path


@pytest.mark.parametrize(
    "path",
    ["{outside}", "{outside}.none", "link.svs", "folder/secret.svs", "folder", "../outside0/secret.svs", "..",
     "cases/../../{twin}/secret.svs", "{root}2/secret.svs", "/etc/passwd", "/dev/zero", "/proc/self/environ",
     "~/secret.svs/../../../../etc/passwd", "a\0b"],
)  # fmt: skip
def test_nothing_outside_the_root_is_opened(server, person, skin, outside, path) -> None:
    named = path.format(outside=outside, root=server.folder, twin=f"{server.folder.name}2")
    answer = person.post("dhlab/scans", json={"path": named, "stamp": None})
    assert answer.status_code == 403
    assert "expected a file below" in answer.json()["message"]


def test_links_and_dots_within_the_root_are_followed(server, person, skin, outside) -> None:
    (server.folder / "own.svs").symlink_to("cases/skin.svs")
    for path in ("own.svs", "cases/../cases/./skin.svs", str(skin), f"{server.folder}//cases/skin.svs"):
        assert person.open_scan(path)["token"] == person.open_scan(skin)["token"]
    assert person.post("dhlab/scans", json={"path": "round.svs"}).status_code == 404


def test_pixels_that_lie_beside_a_file_stay_inside_too(server, person, outside) -> None:
    (server.folder / "linked.mrxs").write_bytes(b"")
    (server.folder / "linked").symlink_to(outside.parent)
    assert person.post("dhlab/scans", json={"path": "linked.mrxs"}).status_code == 403


def test_strangers_are_sent_away_without_a_detour(server, person, phantom) -> None:
    import httpx

    token = person.open_scan(phantom)["token"]
    with httpx.Client(base_url=server.url) as stranger:
        for answer in (
            stranger.get(f"dhlab/tiles/{token}/0/0/0"),
            stranger.get(f"dhlab/values/{token}", params={"y": 0, "x": 0}),
            stranger.post("dhlab/scans", json={"path": "phantom.svs"}),
        ):
            assert answer.status_code == 403
            assert answer.json().keys() == {"message"}


def test_another_site_cannot_post_with_a_persons_cookie(server, person, phantom) -> None:
    import httpx

    person.open_scan(phantom)
    with httpx.Client(base_url=server.url, cookies=person.cookies) as page:
        assert page.post("dhlab/scans", json={"path": "phantom.svs"}).status_code == 403


def test_a_token_is_for_one_person_one_file_and_a_while(server, person, skin, phantom) -> None:
    mine, other = person.open_scan(phantom)["token"], person.open_scan(skin)["token"]
    with server.person() as somebody:
        assert somebody.open_scan(phantom)["token"] != mine
        assert somebody.get(f"dhlab/tiles/{mine}/0/0/0").status_code == 403
    file, expires, signature = mine.split(".")
    later = f"{int(expires) + 3600}"
    forged = [
        f"{file}.{later}.{signature}", f"{other.split('.')[0]}.{expires}.{signature}", f"{file}.{expires}.", f"{file}",
        f"{mine}A", mine[:-1], f"{file}.{expires}.{'A' * 24}", f"{file}..{signature}", "x", f"{file}.-1.{signature}",
    ]  # fmt: skip
    for token in forged:
        assert person.get(f"dhlab/tiles/{token}/0/0/0").status_code == 403, token
    assert person.get(f"dhlab/tiles/{mine}/0/0/0").status_code == 200


def test_a_token_that_has_run_out_asks_for_another(server, person, phantom, monkeypatch) -> None:
    opened = person.open_scan(phantom)
    name = person.get("api/me").json()["identity"]["username"]
    access = Access([], base="", secret=server.secret, lifetime=60)
    file = opened["token"].split(".")[0]
    good, expires = access.sign(name, file)
    assert expires > time.time()
    assert person.get(f"dhlab/tiles/{good}/0/0/0").status_code == 200
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    old, _ = access.sign(name, file)
    answer = person.get(f"dhlab/tiles/{old}/0/0/0")
    assert answer.status_code == 410
    assert "expired" in answer.json()["message"]
    # A server that was started anew knows no files until they are opened.
    unknown, _ = Access([], base="", secret=server.secret, lifetime=1e9).sign(name, "A" * 24)
    assert person.get(f"dhlab/tiles/{unknown}/0/0/0").status_code == 410


def test_label_and_macro_pictures_are_never_sent(person, phantom) -> None:
    hidden = associated_images(phantom)
    assert {"label", "macro"} <= set(hidden)
    opened = person.open_scan(phantom)
    shapes = {picture.shape[:2] for picture in hidden.values()}
    info = opened["layer"]["info"]
    assert tuple(info["shape"]) not in shapes
    for level, resolution in enumerate(info["resolutions"]):
        height, width = info["tiles"][level]
        rows, columns = (
            -(-n // int(side * resolution)) for n, side in zip(info["shape"], (height, width), strict=True)
        )
        tiles = [
            [person.get(f"dhlab/tiles/{opened['token']}/{level}/{r}/{c}?series=1") for c in range(columns)]
            for r in range(rows)
        ]
        picture = np.concatenate([np.concatenate([_decode(t.content) for t in row], 1) for row in tiles], 0)
        for name in ("label", "macro"):
            small = np.asarray(Image.fromarray(hidden[name]).resize((16, 16))).astype(int)
            shown = np.asarray(Image.fromarray(picture).resize((16, 16))).astype(int)
            assert np.abs(small - shown).mean() > 10
    for series in ("phantom.svs?series=1", "phantom.svs#label", "phantom.svs/label", "phantom.svs:label"):
        assert person.post("dhlab/scans", json={"path": series}).status_code == 404


class TestAccess:
    def test_roots_are_real_places_and_the_settings_win(self, tmp_path) -> None:
        for name in ("home", "data"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.svs").touch()
        (tmp_path / "alias").symlink_to(tmp_path / "data")
        access = Access([str(tmp_path / "alias")], base=str(tmp_path / "home"), secret=b"s", lifetime=60)
        assert access.resolve(str(tmp_path / "data" / "a.svs")) == tmp_path / "data" / "a.svs"
        assert access.resolve("../alias/a.svs") == tmp_path / "data" / "a.svs"
        with pytest.raises(Refused) as error:
            access.resolve("a.svs")
        assert status_of(error) == 403

    def test_any_spelling_ends_in_an_answer(self, tmp_path) -> None:
        access = Access([str(tmp_path)], base=str(tmp_path), secret=b"s", lifetime=60)
        for path in ("", ".", "é" * 300, "\udcff.svs", "a\nb", "a/" * 3000, "C:\\x", "//etc/passwd", "\ud800"):
            with contextlib.suppress(Refused):
                real = access.resolve(path)
                assert real.is_relative_to(tmp_path)
                access.identify(File(real, Stamp(1, 2)))

    def test_numbers_tell_files_and_their_states_apart(self, tmp_path) -> None:
        access = Access([], base="", secret=b"s", lifetime=60)
        files = [File(Path(p), Stamp(*s)) for p in ("/a", "/b") for s in ((1, 2), (1, 3), (12, 3))]
        files += [File(files[0].path, files[0].stamp, other) for other in files]
        numbers = {access.identify(file) for file in files}
        assert len(numbers) == 12
        other = Access([], base="", secret=b"t", lifetime=60)
        assert other.identify(files[0]) not in numbers
        token, _ = access.sign("ann", "x")
        assert access.verify("ann", token) == "x"
        for user, key in (("bob", access), ("ann", other), ("", access)):
            with pytest.raises(Refused) as error:
                key.verify(user, token)
            assert status_of(error) == 403

    def test_a_token_lasts_half_its_life_at_least(self, monkeypatch) -> None:
        access = Access([], base="", secret=b"s", lifetime=100)
        for now in (0.0, 49.9, 50.0, 1234.5, 1e9 + 0.3):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            token, expires = access.sign("ann", "x")
            assert 50 <= expires - now <= 100
            monkeypatch.setattr(time, "time", lambda expires=expires: expires - 0.1)
            assert access.verify("ann", token) == "x"
            monkeypatch.setattr(time, "time", lambda expires=expires: float(expires))
            with pytest.raises(Refused) as error:
                access.verify("ann", token)
            assert status_of(error) == 410


def _decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))
