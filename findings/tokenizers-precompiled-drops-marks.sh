#!/bin/sh
# tokenizers 0.23.3 (the fast tokenizers of XLM-R, mE5, bge-m3 ...): the normaliser `Precompiled` loses combining marks.
#
# It looks a whole grapheme of fewer than six bytes up in the character map first, and takes the SHORTEST rule that
# matches its beginning for all of it. So a letter that the map folds (ﬁ, ①, full-width ａ), followed by a combining mark,
# is replaced together with its mark, and the mark is gone. sentencepiece 0.2.3, with the same compiled map, takes the
# LONGEST rule at each place and keeps the mark. Fast and slow tokenizer of one model give other ids for such text:
# full-width letters with accents, ligatures with a dot, digits in circles with a keycap, ordinal signs with a joiner.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.1
"$folder/venv/bin/python" - <<'PY'
import io
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers.normalizers import Precompiled

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b"] * 8), model_writer=model, vocab_size=8, hard_vocab_limit=False, minloglevel=2,
    normalization_rule_name="nmt_nfkc", add_dummy_prefix=False,
)
proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
fast = Precompiled(proto.normalizer_spec.precompiled_charsmap)
slow = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

seen = {}
for text in ("ﬁ\u0307nden", "ａ\u0301", "①\u0301", "½\u20e3", "①\ufe0f"):
    seen[text] = (fast.normalize_str(text), slow.normalize(text))
    print(*(ascii(each) for each in (text, *seen[text])), sep="   ")
expected = {
    "ﬁ\u0307nden": ("finden", "fi\u0307nden"), "ａ\u0301": ("a", "á"), "①\u0301": ("1", "1\u0301"),
    "½\u20e3": ("1\u20442", "1\u20442\u20e3"),
    "①\ufe0f": ("1\ufe0f", "1\ufe0f"),  # six bytes: looked up letter by letter, and nothing is lost
}
assert seen == expected, "this has changed: " + ascii(seen)
print("as described: the first column is the text, then tokenizers, then sentencepiece")
PY
