"""The corpus: no held-out text or near-copy is trained on, pools follow the rule, building is all or nothing.

Near-copies are looked for by brute force, by trigram sets in plain Python, over all that training sees.
"""

import errno
import random
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from test_split import trigrams

from me5lib import io
from me5lib.config import load
from me5lib.data import cards, corpus, shards, split
from me5lib.data.corpus import Corpus, common_meanings, open_corpus
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, Pair, script

LANGUAGES = ("de", "el", "hi", "ja", "ru", "th")
ALPHABETS = {"en": "bcdfghklmnprstvw", "de": "bdfgklmnprstwzäö", "el": "βγδζθκλμνξπρστφχ", "hi": "कखगघचजटडतदनपबमरल",
             "ja": "あかさたなはまやらわいきしちにひ", "ru": "бвгджзклмнпрстфхц", "th": "กขคงจชดตถนบปมยรส"}


def planted() -> corpus.Material:
    """Random phrases as interface strings, and copies and near-copies of all of them in every other source."""
    rng = random.Random(0)

    def phrase(language: str) -> str:
        return " ".join("".join(rng.choice(ALPHABETS[language]) for _ in range(5)) for _ in range(4))

    meanings = [{"en": f"Open the {phrase('en')}", **{code: phrase(code) for code in LANGUAGES}} for _ in range(300)]
    interface = [{"english": m["en"], "text": m[code], "language": code} for m in meanings for code in LANGUAGES]
    gettext = [{"english": m["en"] + " now", "text": phrase("de"), "language": "de"} for m in meanings]
    gettext += [{"english": phrase("en"), "text": m["de"].upper() + ".", "language": "de"} for m in meanings]
    history = [{"english": phrase("en"), "text": phrase("ru"), "language": "ru"} for _ in range(200)]
    history += [{"english": m["en"].replace("Open", "open 17"), "text": phrase("ru"), "language": "ru"}
                for m in meanings]
    titles = [{"query": m["en"], "passage": phrase("en"), "language": "en"} for m in meanings]
    titles += [{"query": phrase("hi"), "passage": m["hi"], "language": "hi"} for m in meanings]
    titles += [{"query": phrase("hi"), "passage": phrase("hi"), "language": "hi"} for _ in range(100)]
    exams = [{"query": f"{phrase('de')}?", "positives": [phrase("de")], "negatives": [m["de"], phrase("de")],
              "language": "de"} for m in meanings]
    exams += [{"query": m["de"], "positives": [phrase("de")], "negatives": [phrase("de")], "language": "de"}
              for m in meanings]
    exams += [{"query": phrase("ru"), "positives": [m["ru"]], "negatives": [phrase("ru")], "language": "ru"}
              for m in meanings]
    exams += [{**row, "query": f"Also, {row['query']}"} for row in exams[:100]]  # near-copies for the dev part
    gsm = [{"id": str(i), "language": code, "text": f"{phrase(code)} {i} 1,000", "answer": phrase(code)}
           for i in range(30) for code in ("en", *LANGUAGES) if code != "th" or i >= 5]
    gsm += [{"id": str(i), "language": "fi", "text": "yksi", "answer": ""} for i in range(10)]
    retrieval = [{"query_id": f"q{i}", "query": phrase("de"), "document_id": f"d{i // 2}", "title": "",
                  "text": f"document {i // 2}", "language": "de"} for i in range(20)]
    labels = [{"text": phrase(code), "label": f"label {i % 2}", "language": code}
              for i in range(80) for code in ("de", "hi")]
    gettext += [{"english": phrase("en"), "text": row["text"], "language": "de"} for row in labels[::2]]
    labels += [{"text": phrase("el"), "label": "one label only", "language": "el"} for i in range(80)]
    train = {"homeassistant": interface, "gettext": gettext, "history": history, "homeassistant-descriptions": titles,
             "exams": exams}
    evaluation = {"gsm": gsm, "xquad": retrieval, "fastapi": retrieval, "intents": labels}
    tables = ({name: pa.Table.from_pylist(rows) for name, rows in each.items()} for each in (train, evaluation))
    return corpus.Material(*tables, {"homeassistant": {"empty": 3}})


SETTINGS = ("data.sources=homeassistant,homeassistant-descriptions,gettext,history", "data.labelled=exams",
            "data.heldout_share=0.4", "evaluate.heldout_strings=50", "evaluate.map_sentences=10")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Corpus:
    """A corpus of planted copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ME5_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(corpus, "read_sources", lambda *_: planted())
        patch.setattr(corpus, "corpus_fingerprint", lambda data: "planted")
        return open_corpus(load("tiny", SETTINGS), progress=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Corpus:
    """CLDR's corpus, built for real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ME5_CACHE", str(tmp_path_factory.mktemp("cache")))
        return open_corpus(load("smoke"), progress=False)


@pytest.fixture(scope="module")
def sets(small):
    return {name: small.task(name).sets for name in small.task_names}


def trained_on(one: Corpus) -> dict[str, set[str]]:
    """Language → every text that stage 1 or stage 2 sees."""
    texts: dict[str, set[str]] = defaultdict(set)
    for (_, language), shard in one.shards.items():
        for first, second in shard.take(np.arange(shard.rows)):
            texts["en" if shard.columns[0] == "english" else language].add(first)
            texts[language].add(second)
    for row in one.labelled():
        texts[row.language].update((row.query, *row.positives, *row.negatives))
    return texts


def held_out(one: Corpus) -> dict[str, list[str]]:
    """Language → every held-out text of the interface sources."""
    texts: dict[str, set[str]] = defaultdict(set)
    for row in one._table("heldout").to_pylist():
        texts["en"].add(row["english"])
        texts[row["language"]].add(row["text"])
    return {language: sorted(own) for language, own in texts.items()}


def near_copies(held: list[str], trained: set[str]) -> list[tuple[str, str]]:
    """Every pair whose trigrams overlap by `split.NEAR`, counted by an inverted index over all of `trained`."""
    texts, sizes, postings = sorted(trained), [], defaultdict(list)
    for number, text in enumerate(texts):
        sizes.append(len(grams := trigrams(text)))
        for gram in grams:
            postings[gram].append(number)
    found = []
    for one in held:
        grams = trigrams(one)
        shared = Counter(number for gram in grams for number in postings.get(gram, ()))
        found += [(one, texts[i]) for i, n in shared.items() if n >= split.NEAR * (len(grams) + sizes[i] - n)]
    return found


def assert_nothing_leaks(one: Corpus, sample: int, languages: tuple[str, ...] = ()) -> None:
    held, trained = held_out(one), trained_on(one)
    forms = {split.mask(text) for own in held.values() for text in own}  # of equal form are all of equal text_key
    assert not [text for own in trained.values() for text in own if split.mask(text) in forms]
    for language in languages or held:
        some = random.Random(1).sample(held[language], min(sample, len(held[language])))
        assert near_copies(some, trained[language]) == [], language


def test_planted_copies_and_near_copies_are_not_trained_on(small, sets):
    assert_nothing_leaks(small, 300)
    trained = trained_on(small)
    held = {text for text in held_out(small)["en"] if text.startswith("Open") and not text.endswith("now")}
    english = trained["en"]
    assert 60 < len(held) < 180 and len(english) > 1000  # 40 % of 300; and the rest is
    assert not {other for text in held for other in (f"{text} now", text.replace("Open", "open 17"))} & english
    only_evaluated = {text for own in sets["intents"].values() for text in (*own[0], *own[2])}
    assert len(only_evaluated) == 160 and not only_evaluated & set().union(*trained.values())


def test_labelled_rows_lose_held_out_negatives_and_are_dropped_for_the_rest(small):
    train, dev = small.labelled(), small.labelled("dev")
    german, russian = ({row.query: row for row in train + dev if row.language == code} for code in ("de", "ru"))
    assert 300 < len(german) < 700 and 100 < len(russian) < 300
    assert any(len(row.negatives) == 1 for row in german.values() if row.query.endswith("?"))
    assert all(set(row.positives).isdisjoint(held_out(small)["ru"]) for row in russian.values())
    assert all(isinstance(row, Labelled) and row.source == "exams" and row.positives for row in train + dev)
    assert dev and train and near_copies(sorted(row.query for row in dev), {row.query for row in train}) == []


def test_pools_follow_the_rule(small, sets):
    assert list(sets) == ["heldout", "gsm", "gsm-raw", "xquad", "fastapi", "intents"]
    assert set(sets["heldout"]) == set(LANGUAGES)
    for english, text in sets["heldout"].values():
        assert len({split.mask(one) for one in english}) == len({split.mask(one) for one in text}) == 50 == len(text)
        order = [split.fraction(split.mask(one)) for one in english]
        assert order == sorted(order)
    with pytest.raises(Me5Error, match="unknown task 'xquad-across': choose one of heldout, gsm"):
        small.task("xquad-across")
    none = Corpus(small.folder, load("tiny"), "x").task("heldout")
    assert none.sets == {}  # 300 strings are not there
    rows = [{"language": "de", "order": order, "english": e, "text": t, "cluster": c} for order, e, t, c in
            [(0.3, "b", "B", 1), (0.1, "a", "A", 1), (0.2, "c", "a", 2), (0.4, "d", "D 5", 3), (0.5, "e", "D 6", 4)]]
    assert [row["english"] for row in corpus.first_of_clusters(rows)] == ["a", "d"]  # cluster, translation: once


def test_the_other_tasks_are_whole(sets):
    assert set(sets["gsm"]) == set(sets["gsm-raw"]) == set(LANGUAGES)  # Finnish has too few items
    assert len(sets["gsm"]["de"][0]) == 30 and len(sets["gsm"]["th"][0]) == len(sets["gsm"]["th"][1]) == 25
    english, german = sets["gsm-raw"]["de"]
    assert [a.split()[-2] for a in english] == [b.split()[-2] for b in german]  # aligned
    assert not any(sign.isdigit() for pair in sets["gsm"].values() for side in pair for text in side for sign in text)
    xquad = sets["xquad"]["de"]
    assert len(xquad.queries) == 20 and len(xquad.documents) == 10 and xquad.relevant["q3"] == {"d1"}
    assert set(sets["intents"]) == {"de", "hi"}  # one label is no task
    texts, labels, test_texts, test_labels = sets["intents"]["de"]
    assert len(texts) == len(labels) and len(test_texts) == len(test_labels) and len(texts) + len(test_texts) == 80
    assert near_copies(test_texts, set(texts)) == []


def test_parallel_meanings_are_aligned_in_the_languages_that_share_most(small, smoke):
    found = smoke.parallel(10)
    assert len(found) >= 21 and {len(texts) for texts in found.values()} == {10} and len(set(found["en"])) == 10
    pairs = {(row["language"], row["english"], row["text"]) for row in smoke._table("heldout").to_pylist()}
    english = found.pop("en")
    assert all((code, e, t) in pairs for code, own in found.items() for e, t in zip(english, own, strict=True))
    assert len({script(texts) for texts in found.values()}) >= 8
    with pytest.raises(Me5Error, match="ask for fewer"):
        small.parallel(100_000)
    has = [("aa", "a", 9), ("ab", "b", 2), ("el", "λ", 9), *((f"x{k}", "z", 8) for k in range(30))]
    rows = [{"language": code, "order": i / 9, "english": f"m{i}", "text": f"{sign}{i}", "cluster": i}
            for code, sign, n in has for i in range(n)]
    shared = common_meanings(rows, 8)
    assert "ab" not in shared and {"aa", "el", "x0", "x29"} < set(shared)
    assert sorted(shared["en"]) == [f"m{i}" for i in range(8)]  # the ninth is in three languages only
    assert [text[1:] for text in shared["el"]] == [text[1:] for text in shared["en"]]


def test_training_reads_its_own_texts_and_all_are_counted(small):
    trained = trained_on(small)
    every = set().union(*trained.values())
    dial = load("tiny", ("train.steps=6", "train.batch=64"))
    mixture = small.mixture(dial, seed=1)
    pairs = [pair for step in range(6) for pair in mixture.batch(step)]
    assert len(pairs) == 384 and all(isinstance(pair, Pair) and {pair.query, pair.passage} <= every for pair in pairs)
    assert mixture.fingerprint == small.mixture(dial, seed=1).fingerprint
    texts = small.sample_texts(600)
    assert 300 < len(texts) <= 600 and len(set(texts)) == len(texts) and set(texts) <= every
    assert all(set(texts) & own for own in trained.values())
    assert texts == small.sample_texts(600) and texts != small.sample_texts(600, seed=1)
    russian = [shard for (_, code), shard in small.shards.items() if code == "ru"]
    rows = {row for shard in russian for row in shard.take(np.arange(shard.rows))}
    assert set(zip(*small.memory("ru"), strict=True)) == rows and len(small.memory("ru")[0]) == len(rows) > 300
    assert small.memory("xx") == ([], [])
    counts = small.counts()
    stage1 = counts[counts.role == "stage 1"].set_index(["source", "language"]).rows.to_dict()
    assert stage1 == {key: shard.rows for key, shard in small.shards.items()}
    assert counts[(counts.source == "homeassistant") & (counts.language == "de")].rows.sum() == 300  # nothing is lost
    assert counts[counts.role == "dropped: empty"].rows.sum() == 3 and small.report["held-out clusters"] > 50


def test_a_built_corpus_is_opened_and_a_second_build_is_equal(smoke, tmp_path, monkeypatch, capsys):
    assert_nothing_leaks(smoke, 300, ("en", "de", "hi", "ja", "ru"))
    monkeypatch.setenv("ME5_CACHE", str(tmp_path))
    monkeypatch.setattr(io, "TICK", 0.01)
    again = open_corpus(load("smoke"))
    shown = capsys.readouterr().err
    assert shown.count("corpus:   0%") > 5 and "corpus: 100%" in shown and "Warning" not in shown
    files = [path.relative_to(smoke.folder) for path in smoke.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if (smoke.folder / path).read_bytes() != (again.folder / path).read_bytes()] == []
    monkeypatch.setattr(corpus, "write_corpus", lambda *_: pytest.fail("built twice"))
    assert open_corpus(load("smoke", ("train.steps=1", "evaluate.heldout_strings=5"))).folder == again.folder
    assert again.fingerprint != corpus.corpus_fingerprint(load("smoke", ("data.heldout_share=0.5",)).data)
    (again.folder / "heldout.parquet").write_bytes(b"PAR1")
    with pytest.raises(Me5Error, match="delete it and run again"):
        again.parallel(3)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), Me5Error("run `me5 packs`")])
def test_a_build_that_fails_leaves_nothing_behind(failure, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise failure

    monkeypatch.setenv("ME5_CACHE", str(tmp_path))
    monkeypatch.setattr(corpus, "hold_out", fail)
    with pytest.raises(Me5Error, match="ME5_CACHE|me5 packs"):
        open_corpus(load("smoke"), progress=False)
    assert [path.name for path in (tmp_path / "corpus").iterdir() if path.suffix != ".lock"] == []


def test_a_hub_scale_trains_on_what_was_built_by_the_papers_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("ME5_CACHE", str(tmp_path))
    with pytest.raises(Me5Error, match="lacks wikipedia, mc4, .*: run `me5 fetch --for base`"):
        open_corpus(load("base"))
    dial = load("base", ["data.sources=nllb,reddit", "train.steps=40", "train.batch=16"])

    def build(source: str, language: str, rows: int) -> None:
        texts = pa.table({"query": [f"{language} {i}" for i in range(rows)], "passage": [str(i) for i in range(rows)]})
        shards.write_shard(texts, tmp_path / "mixture" / source / language / "part-00000")

    build("nllb", "de", 400)
    build("nllb", "sw", 100)
    with pytest.raises(Me5Error, match="lacks reddit: me5 mixture build --card reddit"):
        open_corpus(dial)
    build("reddit", "en", 50)
    made = open_corpus(dial)
    mixture = made.mixture(dial, 0)
    assert mixture.weights == {name: cards.load_card(name).paper.rows for name in ("nllb", "reddit")}
    drawn = {stream.language: n for stream, n in mixture.totals().items() if stream.source == "nllb"}
    assert abs(drawn["de"] - 2 * drawn["sw"]) <= 2  # roots of 400 and 100
    assert not made.task_names and len(mixture.batch(0)) == 16
    before = made.fingerprint
    build("reddit", "en", 51)
    assert open_corpus(dial).fingerprint != before


def test_a_corpus_of_real_packs_leaks_nothing(packs, tmp_path, monkeypatch):
    """Of the tiny corpus where it is built; else of Kolibri's strings and EXAMS' questions in a few languages."""
    dial, cached = load("tiny"), corpus.cache() / "corpus"
    if (cached / corpus.corpus_fingerprint(dial.data)).is_dir():
        one = open_corpus(dial)
        assert_nothing_leaks(one, 50, ("en", "ja"))
        assert len(one.task("heldout").sets) >= 38  # the project's bars: languages, the map, what is left to train on
        found = one.parallel(one.scale.evaluate.map_sentences)
        assert len(found) > 20 and len({script(texts) for texts in found.values()}) >= 8
        counts = one.counts().groupby("role").rows.sum()
        assert counts["stage 1"] / (counts["stage 1"] + counts["dropped: held-out text or near-copy"]) >= 0.85
        return
    codes, read, readers = pa.array(("ar", "bg", "hi", "it", "sw", "vi")), corpus.read_sources, corpus.offline.readers

    def ten_problems(name: str) -> list:
        return [lambda glob, file=file: file(glob.replace("symbolic/*", "symbolic/000*")) for file in readers(name)]

    def few(*data: object) -> corpus.Material:
        material = read(*data)
        tables = {name: table.filter(pc.is_in(table["language"], codes)) for name, table in material.train.items()}
        return material._replace(train=tables)

    monkeypatch.setattr(corpus.offline, "readers", ten_problems)
    monkeypatch.setattr(corpus.offline, "extract_all", lambda cards: [  # such readers cannot go to other processes
        (name, corpus.offline.extract(name, files)) for name, files in cards.items()])
    monkeypatch.setattr(corpus, "read_sources", few)
    monkeypatch.setattr(corpus, "cache", lambda: tmp_path)
    dial = load("tiny", ("data.sources=kolibri", "data.labelled=exams", "evaluate.heldout_strings=100"))
    one = open_corpus(dial, progress=False)
    assert_nothing_leaks(one, 50)
    roles = one.counts().groupby("role").language.nunique()
    assert roles["held out"] == len(codes) and roles["evaluation"] > 100
    assert len(one.labelled()) > 1000 > len(one.labelled("dev")) > 50
