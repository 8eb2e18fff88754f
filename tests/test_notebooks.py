"""Every notebook at scale smoke, executed by the project's own command with the network unplugged."""

import csv
import html
import json
import re

from test_run import loads_from_elsewhere

from me5lib.io import PACKAGE
from me5lib.lessons import run


def test_the_network_is_really_unplugged(unplugged):
    import os
    import subprocess
    import sys

    code = "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=5)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | unplugged, capture_output=True, text=True)
    assert "the network is unplugged" in done.stderr


def test_every_notebook_runs_at_smoke_without_network(smoke_run):
    done, out = smoke_run
    assert done.returncode == 0, done.stderr
    books = run.books()
    assert f"{len(books)} of {len(books)} notebooks finished" in done.stdout
    results = json.loads((out / "results.json").read_text("utf8"))
    assert sorted(results) == sorted(book.name for book in books)
    assert all(results.values()), "a notebook that recorded nothing"


def test_their_pages_load_nothing_from_elsewhere(smoke_run):
    _, out = smoke_run
    pages = [out / "index.html", *sorted((out / "notebooks").glob("*.html"))]
    assert len(pages) == 1 + len(run.books())
    for page in pages:
        assert loads_from_elsewhere(page.read_text("utf8")) == [], page.name


def test_the_first_notebook_needs_nothing_and_comes_first():
    assert run.books()[0].name == "00" and not run.books()[0].needs


def test_the_page_of_the_quickstart_answers_twelve_questions_without_a_kernel(smoke_run):
    _, out = smoke_run
    page = (out / "notebooks" / "00.html").read_text("utf8")
    searches = re.findall(r"<details.*?</details>", page, re.DOTALL)
    assert len(searches) == 12 and all(search.count("<tr>") == 5 for search in searches)
    found = {html.unescape(text) for text in re.findall(r'<td dir="auto"[^>]*>(.*?)</td>', page)}
    with (PACKAGE / "data" / "shelf.csv").open(encoding="utf8", newline="") as file:
        assert found <= {row["answer"] for row in csv.DictReader(file)}


def test_the_quick_experiment_ran_every_arm_under_every_seed(smoke_run):
    (base,) = (smoke_run[1] / "experiments").glob("*/near-misses")
    results = json.loads((base / "results.json").read_text("utf8"))
    assert len(results["arms"]) == 4 and len(list((base / "arms").iterdir())) == 4 * len(results["seeds"])
    assert all(0 <= arm["near-misses"]["mean"] <= 1 for arm in results["arms"])
