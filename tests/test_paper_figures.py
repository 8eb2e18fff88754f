"""Pictures of the tables: every bar is a row of the comparison, in the order of scripts and families."""

import pytest
from matplotlib.colors import to_hex

from me5lib.evaluate import paper
from me5lib.evaluate.verdicts import against_paper
from me5lib.lessons import paper_figures
from me5lib.lessons.figures import COLOURS, GREY, keep


@pytest.fixture(scope="module")
def found():
    """The card's values of mE5-small on Tatoeba as if measured in fp32: one is off, one is missing."""
    frame = paper.expected(5, "small").query("not mean and task == 'Tatoeba' and subset != 'deu-eng'")
    frame = frame[list(paper.COORDINATES)].assign(dtype="fp32")
    rows = against_paper(frame.assign(value=frame["value"] + 5 * (frame["subset"] == "fra-eng")), 5)
    return rows[rows["task"] == "Tatoeba"]


def test_a_bar_per_language_by_script_and_family_and_a_mark_per_published_value(found, tmp_path):
    bars = paper_figures.bars(found)
    assert len(bars) == 112 and {bar.language for bar in bars} == {
        r[:3] for r in paper.load_csv("tatoeba_per_language")["pair"]}
    assert [bar.script for bar in bars[:60]] == ["Latin"] * 60 and bars[-1].script != "Latin"
    for names in ([bar.script for bar in bars], [(bar.script, bar.family) for bar in bars]):
        changes = [a for a, b in zip(names, [None, *names], strict=False) if a != b]
        assert len(changes) == len(set(changes)), "a group stands in two places"
    figure = paper_figures.language_bars(found, "Tatoeba, mE5-small", "F1")
    drawn = {label.get_text()[:3]: (bar.get_height(), to_hex(bar.get_facecolor())) for axis in figure.axes
             for label, bar in zip(axis.get_xticklabels(), axis.patches, strict=True)}
    by_pair = found.set_index("subset")
    assert len(figure.axes) == 3 and len(drawn) == 112
    assert drawn["fra"] == (pytest.approx(by_pair.loc["fra-eng", "expected"] + 5), COLOURS[1].lower())
    assert drawn["deu"] == (pytest.approx(by_pair.loc["deu-eng", "expected"]), GREY.lower())
    assert drawn["jpn"] == (pytest.approx(by_pair.loc["jpn-eng", "measured"]), COLOURS[0].lower())
    keep(figure, tmp_path / "bars.png", "")
    assert (tmp_path / "bars.png").stat().st_size > 20_000
    with pytest.raises(ValueError, match="no language"):
        paper_figures.language_bars(found[found["subset"].str.startswith("mean")], "", "")


def test_sixteen_languages_take_one_panel_and_codes_of_both_kinds_are_known():
    rows = against_paper(paper.expected(4, "small").query("not mean")[list(paper.COORDINATES)], 4)
    (axis,) = paper_figures.language_bars(rows[rows["metric"] == "ndcg_at_10"], "MIRACL", "nDCG@10").axes
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert len(axis.patches) == 16 and "zh · Han" in labels and "sw · Bantu" in labels
    for codes, kin in ((("deu", "de"), ("Latin", "Germanic")), (("cmn", "zh", "zh-hant"), ("Han", "Sinitic")),
                       (("lb",), ("Latin", "unknown")), (("kn",), ("Knda", "unknown")),
                       (("sr-latn",), ("Latin", "Slavic")), (("qqq",), paper_figures.UNKNOWN)):
        assert {paper_figures.kin(code) for code in codes} == {kin}


def test_share_against_score(tmp_path):
    shares = {"de": 0.4, "fr": 0.3, "ru": 0.2, "sw": 0.1, "th": 0.0}
    scores = {"de": 0.9, "fr": 0.8, "ru": 0.7, "th": 0.1, "am": 0.2}
    (axis,) = paper_figures.share_against_score(shares, scores, "share", "F1").axes
    dots = {(x, y) for line in axis.get_lines() for x, y in line.get_xydata()}
    assert dots == {(0.4, 0.9), (0.3, 0.8), (0.2, 0.7)}
    assert "3 languages" in axis.get_title(loc="left") and "+1.00" in axis.get_title(loc="left")
    assert "not trained on: am th" in axis.get_xlabel()
    with pytest.raises(ValueError, match="1 languages"):
        paper_figures.share_against_score(shares, {"de": 0.9}, "share", "F1")


def test_differences_stand_by_script_and_those_that_are_sure_stand_out():
    latin = dict(zip(("ita", "deu", "fra", "spa", "por", "ron"), (3.0, 1.0, -1.0, 4.0, 5.0, 6.0), strict=True))
    spans = {f"{code}-eng": (value, value - 2, value + 2) for code, value in {"rus": -2.5, **latin, "ukr": 0.5}.items()}
    (axis,) = paper_figures.language_deltas(spans, "points").axes
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert shown == ["fra", "deu", "ita", "spa", "por", "ron", "rus", "ukr"]
    lines, dots = axis.collections
    assert dots.get_offsets().tolist() == [[i, spans[f"{code}-eng"][0]] for i, code in enumerate(shown)]
    assert [to_hex(colour).upper() for colour in dots.get_facecolors()] == [
        COLOURS[0 if code in ("fra", "deu", "ukr") else 1] for code in shown]
    assert [line[:, 1].tolist() for line in lines.get_segments()] == [list(spans[f"{c}-eng"][1:]) for c in shown]
    assert [text.get_text() for text in axis.texts] == ["Latin +3.0", "other scripts -1.0"]
