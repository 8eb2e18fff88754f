"""The map: the same twice, its caption tells both agreements, its widget has a static twin."""

import numpy as np
import pytest

from me5lib import pairs
from me5lib.lessons import atlas
from me5lib.lessons.figures import keep


@pytest.fixture(scope="module")
def laid():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1, 12, 8)) + 0.1 * rng.normal(size=(4, 12, 8))
    return atlas.lay_out(vectors, "after", seed=1, k=3), vectors


def test_one_seed_gives_one_map(laid):
    again = atlas.lay_out(laid[1], "after", seed=1, k=3)
    assert np.array_equal(again.points, laid[0].points)


def test_the_caption_gives_the_agreement_in_space_and_on_the_map(laid):
    assert laid[0].in_space == 1.0
    assert 0.3 < laid[0].on_map <= 1.0
    assert "100% in the space" in laid[0].caption and f"{laid[0].on_map:.0%} on the map" in laid[0].caption


@pytest.mark.parametrize(
    ("text", "name"),
    [("Grüße", "latin"), ("Привет 1", "cyrillic"), ("日本", "cjk"), ("ไทย", "thai"), ("12", "none")],
)
def test_scripts_by_unicode_name(text, name):
    assert pairs.script([text]) == name


def test_the_widget_redraws_and_the_twin_is_a_picture(laid, tmp_path):
    languages, scripts = ["en", "ru", "ja", "th"], ["latin", "cyrillic", "cjk", "thai"]
    box = atlas.explorer([laid[0]], languages, scripts, [f"meaning {i}" for i in range(12)])
    controls, picture = box.children
    before = bytes(picture.value)
    controls.children[1].value = 7
    assert before.startswith(b"\x89PNG") and bytes(picture.value) != before
    keep(atlas.draw([laid[0]], languages, scripts, [7]), tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_a_missing_glyph_is_an_error(tmp_path):
    from me5lib.lessons.figures import canvas

    figure, axis = canvas()
    axis.set_title("\U0001f9ff\u1780")
    with pytest.raises(UserWarning, match="[Gg]lyph"):
        keep(figure, tmp_path / "x.png")
