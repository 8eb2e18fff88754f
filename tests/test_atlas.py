"""The atlas: layouts say what they kept, as scikit-learn counts it; the page shows what NumPy finds, in a browser."""

import json

import numpy as np
import pandas
import pytest
from sklearn.manifold import trustworthiness
from threadpoolctl import threadpool_limits

from me5lib import config
from me5lib.cli.evaluate import atlas_command
from me5lib.evaluate.alignment import bitext_accuracy, centred, translations
from me5lib.evaluate.paper import languages
from me5lib.evaluate.stats import Interval
from me5lib.io import Me5Error
from me5lib.lessons import atlas
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer

BREAK_OUT = "</script><img src=x onerror=\"document.title='broken'\">"


def space(codes, meanings, width=24, seed=0):
    """Meanings, each language's own direction, and noise: unit vectors [codes, meanings, width]."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(1, meanings, width)), rng.normal(size=(codes, 1, width)) / 2
    vectors = parts[0] + parts[1] + 0.8 * rng.normal(size=(codes, meanings, width))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_a_map_says_what_it_kept_as_scikit_learn_counts_it():
    vectors = space(6, 20)
    laid = atlas.lay_out_map(vectors, "m", method="PCA", removed=True)
    flat, points = centred(vectors).reshape(120, -1), laid.points.reshape(120, 2)
    assert laid.trustworthiness.mean == pytest.approx(trustworthiness(flat, points))
    assert laid.continuity.mean == pytest.approx(trustworthiness(points, flat))
    assert laid.accuracy.mean == pytest.approx(np.nanmean(bitext_accuracy(centred(vectors))))
    for kept, own in ((laid.in_space, flat), (laid.on_map, points)):
        gaps = np.linalg.norm(own[:, None] - own[None], axis=-1)
        hits = [j % 20 == i % 20 for i in range(120) for j in np.argsort(gaps[i])[1:6]]
        assert kept.mean == pytest.approx(np.mean(hits)) and kept.low <= kept.mean <= kept.high
    assert f"trustworthiness {laid.trustworthiness.mean:.3f}" in laid.caption and "95 % over meanings" in laid.note


def test_a_text_that_is_absent_is_nowhere_and_counts_nowhere():
    vectors = space(5, 12)
    vectors[3, 4] = np.nan
    laid = atlas.lay_out_map(vectors, "m", method="PCA", removed=True)
    cosines, ranks = translations(vectors)
    assert np.isnan(laid.points[3, 4]).all() and np.isfinite(np.delete(laid.points.reshape(60, 2), 40, axis=0)).all()
    assert (ranks[3, :, 4] == 0).all() and (ranks[:, 3, 4] == 0).all() and (ranks == 0).sum() == 9
    rank = 1 + sum(vectors[1, 2] @ vectors[3, m] > vectors[1, 2] @ vectors[3, 2] for m in range(12))
    assert ranks[1, 3, 2] == rank and cosines[1, 3, 2] == pytest.approx(vectors[1, 2] @ vectors[3, 2])


def test_umap_gives_the_same_bytes_on_one_thread_and_on_two():
    vectors, found = space(6, 20), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(atlas.lay_out_map(vectors, "m", seed=3))
    assert found[0].points.tobytes() == found[1].points.tobytes()
    assert found[0].trustworthiness.mean > atlas.lay_out_map(vectors, "m", method="PCA").trustworthiness.mean + 0.05


# The page in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A page of 60 meanings in 108 languages: its file, its vectors [6480, 24], its texts, its codes."""
    codes = sorted(languages()["short"])[:108]
    texts = {code: [f"{code}{m} Äpfel {'सेब' if m == 7 else ''}" for m in range(60)] for code in codes}
    texts[codes[0]][0] = BREAK_OUT
    spaces = {"first": space(108, 60), "second": space(108, 60, seed=1)}
    rng, kept = np.random.default_rng(0), [Interval(0.5, 0.4, 0.6)] * 5
    maps = [atlas.Map(title, method, removed, rng.normal(size=(108, 60, 2)), *kept)
            for title in spaces for method in atlas.METHODS for removed in (False, True)]
    file = tmp_path_factory.mktemp("atlas") / "atlas.html"
    file.write_text(atlas.explorer(spaces["first"], texts, maps).html, encoding="utf8")
    assert file.stat().st_size < 2.5e6
    return file, spaces["first"].reshape(6480, -1), sum((texts[code] for code in codes), []), codes


@pytest.fixture
def page(big, browser):
    """That page, open; at the end: no error in the console, no request but for the file, no script in a text run."""
    heard, page = [], browser.new_page(offline=True, viewport={"width": 1280, "height": 860})
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(big[0].as_uri())
    page.wait_for_selector("#filters summary")
    yield page
    assert heard == [big[0].as_uri()] and page.title() == "The atlas: a map of translations"


READ = """text => { choose(text); const lists = [...document.querySelectorAll('#chosen ol')];
    const words = item => item.querySelector('button').textContent;
    return [...lists.map(list => [...list.children].map(item => [words(item), item.lastChild.textContent])),
        [...document.querySelectorAll('#chosen td:first-child')].map(cell => [words(cell),
            ...[...cell.parentNode.children].slice(1).map(other => other.textContent)])] }"""


def test_neighbours_and_ranks_on_the_page_are_those_of_numpy(page, big):
    _, vectors, texts, _ = big
    points = np.array(page.evaluate("data.maps[0].points")).reshape(-1, 2)
    for text in np.random.default_rng(1).choice(6480, 100, replace=False):
        in_space, on_map, table = page.evaluate(READ, int(text))
        cosines = vectors @ vectors[text]
        order = np.argsort(-cosines)[1:6]
        assert [words for words, _ in in_space] == [texts[i] for i in order]
        assert [float(about.split(", ")[1]) for _, about in in_space] == pytest.approx(cosines[order], abs=5.1e-4)
        assert [", ✓" in about for _, about in in_space] == [i % 60 == text % 60 for i in order]
        gaps = np.linalg.norm(points - points[text], axis=1)
        assert [gaps[texts.index(words)] for words, _ in on_map] == pytest.approx(np.sort(gaps)[1:6])  # some are equal
        meaning = [i for i in range(text % 60, 6480, 60) if i != text]
        ranks = {i: 1 + int((cosines[i // 60 * 60 : i // 60 * 60 + 60] > cosines[i]).sum()) for i in meaning}
        assert {words: int(rank) for words, _, rank in table} == {texts[i]: rank for i, rank in ranks.items()}
        assert {words: float(cosine) for words, cosine, _ in table} == pytest.approx(
            {texts[i]: cosines[i] for i in meaning}, abs=5.1e-4)


def test_a_reader_hovers_searches_clicks_filters_and_goes_from_map_to_map(page, big):
    _, _, texts, codes = big
    page.fill("#query", "सेब")
    assert page.text_content("#status").startswith("108 texts found")
    page.fill("#query", "AWA7 apfel")
    assert page.locator("#hits button").all_text_contents() == [texts[codes.index("awa") * 60 + 7]]
    page.focus("#query")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert "awa7" in page.text_content("#chosen h2") and "Awadhi (awa), Devanagari" in page.text_content("#chosen")
    place = "text => { const { x, y } = $('map').getBoundingClientRect(); return [x + across(text), y + down(text)] }"
    alone = page.evaluate("[...visible.keys()].find(i => pick(across(i), down(i)) === i && i > 3000)")
    page.mouse.move(*page.evaluate(place, alone))
    assert page.text_content("#tip").startswith(texts[alone]) and page.is_visible("#tip")
    page.mouse.down()
    page.mouse.up()
    assert page.text_content("#chosen h2") == texts[alone]
    nearest = page.locator("#chosen ol").nth(1).all_text_contents()
    page.select_option("#model", "second")
    page.check("#centred")
    page.wait_for_function("!morph && state.map === 5")
    assert page.evaluate("place.every((x, i) => Math.abs(x - data.maps[5].points[i]) < 1e-6)")
    assert page.locator("#chosen ol").nth(1).all_text_contents() != nearest
    assert "second by UMAP, language means removed." in page.text_content("#note")
    page.click("#script button >> text=none")
    assert page.evaluate("visible.filter(Boolean).length") == 0
    page.check("#script input[value=Arabic]")
    shown = sum(60 for code in codes if atlas.kin(code)[0] == "Arabic")
    assert page.evaluate("visible.filter(Boolean).length") == shown
    before = page.evaluate("unit()")
    page.focus("#map")
    for key in ("+", "ArrowLeft", "Escape"):
        page.keyboard.press(key)
    assert page.evaluate("unit()") == pytest.approx(1.3 * before) and page.text_content("#chosen") == ""


def test_on_a_phone_or_at_four_times_the_size_nothing_is_beside_the_page(page):
    for width in (400, 320):  # 320 is 1280 pixels at 400 %
        page.set_viewport_size({"width": width, "height": 300})
        page.evaluate("choose(61)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.click("#in")
        page.click("#map", position={"x": width // 2, "y": 200})


def test_me5_atlas_writes_a_page_and_a_table_of_ones_own_texts(tmp_path, browser, monkeypatch):
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    model, data = tmp_path / "model", tmp_path / "mine.csv"
    rows = [{"en": f"word {i}", "de": f"Wort {i}", "el": "" if i == 3 else f"λέξη {i}"} for i in range(9)]
    pandas.DataFrame(rows).to_csv(data, index=False)
    Encoder.new(config.load("smoke").model, train_tokenizer(list(rows[0].values()), 300), seed=1).save(model)
    page, table = tmp_path / "atlas.html", tmp_path / "atlas.parquet"
    atlas_command(str(model), data=str(data), out=page, parquet=table)
    shown = browser.new_page(offline=True)
    shown.goto(page.as_uri())
    shown.fill("#query", "ΛΕΞΗ")
    assert shown.text_content("#status") == "8 texts found."
    frame = pandas.read_parquet(table)
    assert list(frame) == ["x", "y", "text", "language", "meaning", "neighbors"] and len(frame) == 26
    assert all(sorted(row) == ["distances", "ids"] and i not in row["ids"] for i, row in enumerate(frame["neighbors"]))
    vectors = Encoder.load(model).encode(frame["text"].tolist())
    nearest = frame["neighbors"][0]
    assert nearest["distances"] == pytest.approx(1 - vectors[nearest["ids"]] @ vectors[0], abs=1e-5)
    assert list(nearest["distances"]) == sorted(nearest["distances"])
    few = tmp_path / "few.csv"
    few.write_text("en,de\none,eins\n", encoding="utf8")
    for wrong, says in (({"data": str(few)}, "2 texts in 2 columns"), ({"data": "no.csv"}, "no.csv: No such file"),
                        ({"out": data}, "which ends in .html"), ({"out": None}, "say what to write")):
        with pytest.raises(Me5Error, match=says):
            atlas_command(str(model), **{"data": str(data), "out": page} | wrong)
    assert "word 0" in data.read_text("utf8")


def test_the_file_of_a_page_is_the_frame_of_a_notebook():
    vectors = space(3, 8)
    texts = {code: [f"{code} {m}" for m in range(8)] for code in ("de", "en", "fr")}
    maps = [atlas.lay_out_map(vectors, "m", method="PCA")]
    shown = atlas.explorer(vectors, texts, maps)
    assert len(repr(shown)) < 100 and "srcdoc=" in shown._repr_html_() and "<script" not in shown._repr_html_()
    assert json.dumps(atlas.page_data(vectors, texts, maps), allow_nan=False)
