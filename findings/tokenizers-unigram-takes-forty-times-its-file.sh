#!/bin/sh
# tokenizers 0.23.3: a `Unigram` model (XLM-R's, so all multilingual E5s', T5's) holds its pieces in a trie of hash maps,
# one to a node. 250,000 pieces that lie in a file of 12 MB take about 500 MB of memory, where a `WordPiece` model of the
# same pieces takes 30 to 50; XLM-R's own, whose pieces share more beginnings, take 260 MB, half of mE5-small's weights.
# Nothing is shared: a second load of the same file, `copy.deepcopy` of a model that holds its tokenizer, and
# `PreTrainedTokenizerFast(tokenizer_object=…)`, which copies it, take as much again. Keep one object. (Linux)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 2>/dev/null
cat > "$folder/make.py" <<'PY'
import random
import sys

from tokenizers import Tokenizer, models

draw = random.Random(0)
letters = [chr(code) for code in (*range(97, 123), *range(0x430, 0x450), *range(0x4E00, 0x4E40))]
pieces = sorted({"".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(255_000)})[:250_000]
numbers = {piece: number for number, piece in enumerate(["<unk>", *pieces])}
Tokenizer(models.WordPiece(numbers, unk_token="<unk>")).save(f"{sys.argv[1]}/WordPiece.json")
Tokenizer(models.Unigram([("<unk>", 0.0), *((piece, -10.0) for piece in pieces)], unk_id=0)).save(
    f"{sys.argv[1]}/Unigram.json")
PY
cat > "$folder/load.py" <<'PY'
import copy
import os
import sys

from tokenizers import Tokenizer


def megabytes():
    """Resident memory of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


file, took, kept = sys.argv[1], [], []
for make in (lambda: Tokenizer.from_file(file), lambda: Tokenizer.from_file(file), lambda: copy.deepcopy(kept[0])):
    before = megabytes()
    kept.append(make())
    took.append(megabytes() - before)
size = os.path.getsize(file) / 2**20
print(f"{os.path.basename(file)}: {size:.0f} MB; a load, a second one, a copy: {[round(each) for each in took]} MB",
      file=sys.stderr)
print("over 25 times its file, every time" if min(took) > 25 * size else "under 10 times" if max(took) < 10 * size
      else "between")
PY
"$folder/venv/bin/python" "$folder/make.py" "$folder"
for kind in WordPiece Unigram; do "$folder/venv/bin/python" "$folder/load.py" "$folder/$kind.json"; done > "$folder/seen"
cat "$folder/seen"
[ "$(cat "$folder/seen")" = "under 10 times
over 25 times its file, every time" ] || { echo "this has changed"; exit 1; }
