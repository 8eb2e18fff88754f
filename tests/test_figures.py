"""The atlas is the same twice, widgets have static twins, alignment is that of plain loops, a glyph is never a box."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from me5lib import pairs
from me5lib.evaluate import alignment
from me5lib.lessons import atlas, figures


def test_a_missing_glyph_is_an_error(tmp_path):
    figure, axis = figures.canvas()
    axis.set_title("\U0001f9ff\u1780")
    with pytest.raises(UserWarning, match="[Gg]lyph"):
        figures.keep(figure, tmp_path / "x.png", "")


# The atlas and the numbers beside it ----------------------------------------------------------------------------------


@pytest.fixture
def laid(monkeypatch):
    """A map laid out by a stand-in for UMAP, which takes seconds to compile: its first two dimensions."""
    asked = []

    def umap(**options):
        asked.append(options)
        return SimpleNamespace(fit_transform=lambda points: points[:, :2])

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=umap))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1, 12, 8)) + 0.1 * rng.normal(size=(6, 12, 8))
    return atlas.lay_out_map(vectors, "after", seed=1), vectors, asked


def test_a_map_has_a_fixed_seed_and_its_caption_gives_the_agreement_in_space_and_on_it(laid):
    found, vectors, asked = laid
    assert [options.pop("tqdm_kwds")["desc"] for options in asked] == ["map of after"]
    assert asked == [{"n_neighbors": 15, "metric": "cosine", "random_state": 1}]
    flat = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert found.points == pytest.approx(flat[..., :2]) and found.in_space == 1.0
    assert found.on_map == alignment.agreement_by_language(found.points).mean() < 1
    assert "100% in the space" in found.caption and f"{found.on_map:.0%} on the map" in found.caption


def test_scripts_by_unicode_name():
    texts = {"Grüße": "latin", "Привет 1": "cyrillic", "日本": "cjk", "ไทย": "thai", "12": "none"}
    assert {text: pairs.script([text]) for text in texts} == texts


def test_a_widget_draws_again_what_its_static_twin_shows(laid):
    languages = ["en", "ru", "ja", "th", "de", "fr"]
    scripts = ["latin", "cyrillic", "cjk", "thai", "latin", "latin"]
    controls, picture = atlas.explorer([laid[0]], languages, scripts, [f"meaning {i}" for i in range(12)]).children
    before = bytes(picture.value)
    controls.children[1].value = 7
    assert before.startswith(b"\x89PNG") and bytes(picture.value).startswith(b"\x89PNG") and picture.value != before


@pytest.fixture
def space():
    """Three languages, 20 meanings: a shared part, a direction of the language's own, a little noise."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(1, 20, 16)), 6 * rng.normal(size=(3, 1, 16))
    return shared + own + 0.05 * rng.normal(size=(3, 20, 16))


def test_bitext_accuracy_is_the_plain_loop(space):
    table = alignment.bitext_accuracy(space)
    for i in range(3):
        for j in range(3):
            hits = sum(np.argmax([a @ space[i, m] / np.linalg.norm(a) for a in space[j]]) == m for m in range(20))
            assert np.isnan(table[i, j]) if i == j else table[i, j] == pytest.approx(hits / 20)


def test_centring_removes_the_language_and_keeps_the_meaning(space):
    assert alignment.language_probe(space) == 1.0
    flat = alignment.centred(space)
    assert alignment.language_probe(flat) < 0.6
    assert np.nanmean(alignment.bitext_accuracy(flat)) > np.nanmean(alignment.bitext_accuracy(space)) + 0.1
    assert alignment.agreement_by_language(flat, k=2).mean() == 1.0
    assert alignment.agreement_by_language(alignment.unit(space), k=2).mean() < 0.1


def test_neighbour_agreement_is_the_plain_loop(space):
    points = space[..., :2]
    flat, hits = points.reshape(-1, 2), [0, 0, 0]
    for i, point in enumerate(flat):
        order = sorted((j for j in range(60) if j != i), key=lambda j: np.sum((flat[j] - point) ** 2))
        hits[i // 20] += sum(j % 20 == i % 20 for j in order[:3])
    assert alignment.agreement_by_language(points, k=3) == pytest.approx([own / 60 for own in hits])
