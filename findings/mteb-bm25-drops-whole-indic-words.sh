#!/bin/sh
# mteb 2.26.24 with bm25s 0.3.16: the baseline `baseline/bm25s` takes a word for \w\w+, and to Python's `re` a vowel sign
# or a virama is no \w. In scripts that write vowels as signs a word falls into its consonants, and consonants that stand
# alone are thrown away: of Hindi पानी (water) and किताब (book) nothing is left, of भारत (India) रत. So
# a lexical baseline of Hindi, Bengali, Telugu or Tamil retrieval (MIRACL has three of them)
# is far weaker than BM25 over words is, and "the dense model beats BM25" says less there than it seems to. Thai, Khmer,
# Lao, Burmese, Tibetan, Japanese, Chinese and Korean are cut into single characters instead.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mteb==2.26.24 bm25s==0.3.16 PyStemmer==3.1.0 \
  torch==2.13.0 2>/dev/null
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
from mteb.models.model_implementations.bm25 import BM25Tokenizer

WORDS = {  # language: {word: its meaning}
    "hin": {"पानी": "water", "किताब": "book", "भारत": "India"},
    "ben": {"পানি": "water", "বই": "book", "ভারত": "India"},
    "tel": {"నీరు": "water", "పుస్తకం": "book"},
    "tha": {"น้ำ": "water", "หนังสือ": "book"},
    "kor": {"물": "water", "도서관": "library"},
    "deu": {"Wasser": "water", "Buch": "book"},
}
kept = {}
for language, words in WORDS.items():
    for word, meaning in words.items():
        done = BM25Tokenizer(language, freq_threshold=0).fit_transform([word])
        name = {number: token for token, number in done.vocab.items()}
        kept[language, meaning] = [name[number] for number in done.ids[0]]
        print(language, word, meaning, kept[language, meaning])
assert kept["hin", "water"] == kept["hin", "book"] == [], "Hindi words are kept now"
assert kept["hin", "India"] == ["रत"], "this has changed"
assert kept["tel", "water"] == [] and kept["ben", "water"] == [], "this has changed"
assert len(kept["tha", "book"]) == 7 and len(kept["kor", "library"]) == 3, "this has changed"
assert len(kept["deu", "water"]) == 1, "the control has changed"
PY
