"""`me5 mixture check`: the command over built shards and over an offline corpus."""

import csv

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from me5lib.cli.app import app
from me5lib.data import shards


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
