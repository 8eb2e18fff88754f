"""Alignment is that of plain loops, a glyph is never a box."""

import numpy as np
import pytest

from me5lib import pairs
from me5lib.evaluate import alignment
from me5lib.lessons import figures


def test_a_missing_glyph_is_an_error(tmp_path):
    figure, axis = figures.canvas()
    axis.set_title("\U0001f9ff\u1780")
    with pytest.raises(UserWarning, match="[Gg]lyph"):
        figures.keep(figure, tmp_path / "x.png", "")


# The numbers beside the atlas -----------------------------------------------------------------------------------------


def test_scripts_by_unicode_name():
    texts = {"Grüße": "latin", "Привет 1": "cyrillic", "日本": "cjk", "ไทย": "thai", "12": "none"}
    assert {text: pairs.script([text]) for text in texts} == texts


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
    assert alignment.probe_by_language(space).mean() == 1.0
    flat = alignment.centred(space)
    assert alignment.probe_by_language(flat).mean() < 0.6
    assert np.nanmean(alignment.bitext_accuracy(flat)) > np.nanmean(alignment.bitext_accuracy(space)) + 0.1
