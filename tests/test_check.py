"""`me5 mixture check`: the command over built shards and over an offline corpus; streams opened from a folder."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from me5lib.cli.app import app
from me5lib.data import shards
from me5lib.data.mixture import Mixture
from me5lib.io import Me5Error


def check(*options):
    return CliRunner().invoke(app, ["mixture", "check", "--scale", "smoke", *options])


@pytest.fixture
def built(tmp_path):
    """Two parts of one language and one of another, as a build leaves them."""
    for language, part, rows in (("de", 0, 3), ("de", 1, 4), ("sw", 0, 2)):
        texts = [f"row {language} {part} {i} of a book" for i in range(rows)]
        table = pa.table({"query": [f"heading {text}" for text in texts], "passage": texts})
        shards.write_shard(table, tmp_path / "built" / "wikipedia" / language / f"part-{part:05d}-0000")
    return tmp_path / "built"


def test_built_parts_are_one_stream_that_a_mixture_draws_from(built):
    streams = shards.open_streams(built)
    assert {key: stream.rows for key, stream in streams.items()} == {("wikipedia", "de"): 7, ("wikipedia", "sw"): 2}
    mixture = Mixture(streams, steps=9, batch=4, seed=0, temperature=1.0)
    drawn = [pair.passage for step in range(9) for pair in mixture.batch(step)]
    assert sorted(set(drawn)) == sorted(text for stream in streams.values() for text in
                                        stream.read(np.arange(stream.rows))[1])
    assert all(drawn.count(text) == 4 for text in drawn)  # 36 rows of 9: four passes


def test_an_empty_folder_says_how_to_build(tmp_path):
    with pytest.raises(Me5Error, match="no built shards in .*me5 mixture build"):
        shards.open_streams(tmp_path)


def test_a_leak_into_built_shards_is_told_written_and_fails(built, tmp_path):
    clean = check("--out", str(built))
    assert clean.exit_code == 0 and "9 rows against" in clean.stdout and ": 0 leaks" in clean.stdout, clean.stderr
    (tmp_path / "held.txt").write_text("Row DE 1 2 of a  book\nanother text\n", encoding="utf8")
    found = check("--out", str(built), "--texts", str(tmp_path / "held.txt"), "--report", str(tmp_path / "leaks.csv"))
    assert found.exit_code == 1 and ": 1 leaks" in found.stdout and "equal to" in found.stdout
    with (tmp_path / "leaks.csv").open(encoding="utf8", newline="") as stream:
        (leak,) = csv.DictReader(stream)
    assert (leak["source"], leak["language"], leak["kind"], leak["task"]) == ("wikipedia", "de", "exact", "held.txt")


def test_the_offline_corpus_is_checked_and_a_missing_file_is_one_line(tmp_path):
    done = check()
    assert done.exit_code == 0 and ": 0 leaks" in done.stdout, done.stdout + done.stderr
    missing = check("--texts", str(tmp_path / "no.txt"))
    assert missing.exit_code == 2 and missing.stderr.strip().count("\n") == 0 and "no such file" in missing.stderr
