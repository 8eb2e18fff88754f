#!/bin/sh
# transformers 5.23.0: AutoTokenizer.from_pretrained on a folder that has a config.json and no tokenizer file at all (as a
# trainer's checkpoint often is) raises nothing. It makes up a tokenizer of the backbone's usual class with five special
# tokens: every word is [UNK], all texts of as many words get the same ids, and a model the same vector.
# With tokenizer.json but without tokenizer_config.json it takes BERT's class for an XLM-R vocabulary, and ADDS [CLS],
# [SEP] ... behind it: ids beyond the embedding table.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
"$folder/venv/bin/python" - "$folder" <<'PY' 2>/dev/null
import json, pathlib, sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

folder = pathlib.Path(sys.argv[1])
for name in ("none", "unnamed"):
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 8}))
made_up = AutoTokenizer.from_pretrained(folder / "none")
one, two = (made_up(text)["input_ids"] for text in ("the cat sleeps", "prices rose again"))
print(type(made_up).__name__, len(made_up), one, two)

pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁the", -1.0), ("▁cat", -1.0), ("▁", -2.0), ("s", -3.0)]
vocabulary = Tokenizer(models.Unigram(pieces, unk_id=3))
vocabulary.pre_tokenizer = pre_tokenizers.Metaspace()
vocabulary.save(str(folder / "unnamed" / "tokenizer.json"))
grown = AutoTokenizer.from_pretrained(folder / "unnamed")
print(type(grown).__name__, len(grown), grown.get_vocab().get("[CLS]"))
assert len(made_up) == 5 and one == two, "this has changed: no tokenizer"
assert len(grown) > len(pieces) and grown.get_vocab()["[CLS]"] >= len(pieces), "this has changed: no class"
PY
