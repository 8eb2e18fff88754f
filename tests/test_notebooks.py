"""Every notebook at scale smoke, executed by the project's own command with the network unplugged."""

import csv
import html
import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import suppress

import pytest
from conftest import ROOT, me5
from test_bundle import tree
from test_run import loads_from_elsewhere

from me5lib import io
from me5lib.evaluate.paper import load_csv
from me5lib.io import PACKAGE
from me5lib.lessons import report, run


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


@pytest.fixture(scope="module")
def class_file(smoke_run, unplugged, tmp_path_factory):
    """The bundle of that run."""
    file = tmp_path_factory.mktemp("class") / "class.zip"
    done = me5("run", "--scale", "smoke", "--out", str(smoke_run[1]), "--export", str(file), **unplugged)
    assert done.returncode == 0 and "left out" not in done.stdout, done.stdout + done.stderr
    assert file.stat().st_size < 5e6
    return file


GUIDE = (io.asset("notebooks") / "README.md").read_text("utf8")
PLANS = re.findall(r"^    me5 run --from class\.zip --only ([\d,]+)$", GUIDE, re.MULTILINE)


def test_the_guide_has_three_plans_and_the_longest_has_every_notebook():
    assert len(PLANS) == 3 and PLANS[-1].split(",") == [book.name for book in run.books()]
    for name, plan in zip(("Half a day", "One day"), PLANS, strict=False):
        (words,) = re.findall(rf"\*\*{name}.*?\n\n", GUIDE, re.DOTALL)
        told = re.sub(r"Keep .*", "", words, flags=re.DOTALL)
        assert sorted(set(re.findall(r"\b(?:0\d|10)\b", told))) == plan.split(",")
    assert {*PLANS[0].split(",")} < {*PLANS[1].split(",")} < {*PLANS[2].split(",")}


@pytest.mark.parametrize("plan", PLANS[::2])  # the fewest predecessors, and every notebook: the other lies between
def test_a_plan_of_the_guide_runs_from_a_bundle_to_its_end_and_makes_nothing_new(plan, class_file, unplugged, tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    done = me5("run", "--scale", "smoke", "--out", str(out), "--from", str(class_file), "--only", plan,
               **unplugged | {"ME5_CACHE": str(cache)})
    assert done.returncode == 0 and "added" not in done.stdout, done.stdout + done.stderr
    assert re.findall(r"^(\d\d)  finished", done.stdout, re.MULTILINE) == plan.split(",")
    with zipfile.ZipFile(class_file) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if "/" in name}
    now = tree(out) | {f"cache/{name}": content for name, content in tree(cache).items()}
    assert sum("gsm" in name for name in held) > 5 and held.items() <= now.items()
    made = {name for name in now if re.fullmatch(r"(stage|evaluation|cache/evaluation).*\.(json|safetensors)", name)}
    assert made <= set(held)


def pages_of(out):
    return sorted((out / "notebooks").glob("*.html"), key=lambda path: path.stem)


def test_their_pages_load_nothing_from_elsewhere_are_small_and_say_what_pictures_show(smoke_run):
    _, out = smoke_run
    assert [path.stem for path in pages_of(out)] == [*(book.name for book in run.books()), "10-tables",
                                                     "10-the-paper", "10-what-it-costs"]
    for page in (out / "index.html", *pages_of(out)):
        assert loads_from_elsewhere(page.read_text("utf8")) == [], page.name
        assert page.stat().st_size <= 1_000_000, page.name
        captions = re.findall("<figcaption>(.*?)</figcaption>", text := page.read_text("utf8"))
        assert text.count("<img") == len(captions) and all(20 < len(html.unescape(own)) < 200 for own in captions)


PICTURES = """[...document.images].map(image => [image.alt, image.naturalWidth > 0,
    image.nextElementSibling?.tagName == "FIGCAPTION" && image.nextElementSibling.textContent])"""
PLACE = "place => document.getElementById(place) || document.getElementById(decodeURIComponent(place))"
LOST = f"[...document.querySelectorAll('nav li a')].filter(link => !({PLACE})(link.hash.slice(1))).map(String)"


def test_a_reader_goes_from_page_to_page_and_every_picture_says_what_it_shows(smoke_run, browser):
    _, out = smoke_run
    page, heard, seen = browser.new_page(offline=True, viewport={"width": 390, "height": 800}), [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto((out / "index.html").as_uri())
    page.click("table a")
    page.wait_for_url("**/00.html")
    while True:
        seen.append(page.url.rpartition("/")[2].removesuffix(".html"))
        for alt, shown, caption in page.evaluate(PICTURES):
            assert shown and 20 < len(alt) < 200 and alt == caption, f"{seen[-1]}: {alt!r}, {caption!r}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{seen[-1]} on a phone"
        assert page.query_selector("nav li") and page.evaluate(LOST) == [], seen[-1]
        if not (onward := page.query_selector("nav a[rel=next]")):
            break
        with page.expect_navigation():
            onward.click()
    assert seen == [path.stem for path in pages_of(out)]
    assert [what for what in heard if not what.startswith(("file:", "data:"))] == []
    page.click("nav summary")
    page.click("nav li:last-child a")
    top = page.evaluate(f"({PLACE})(location.hash.slice(1)).getBoundingClientRect().top")
    assert 0 < top < 800 and not page.is_visible("nav li")
    for before in reversed(seen[:-1]):
        page.click("footer a[rel=prev]")
        page.wait_for_url(f"**/{before}.html")
    page.click("nav a")
    page.wait_for_url("**/index.html")
    pictures = page.evaluate("[...document.images].map(image => [image.alt, image.naturalWidth > 0])")
    assert len(pictures) > 40 and all(shown and " " in alt for alt, shown in pictures)


def test_pages_are_dark_where_the_reader_wants_it(smoke_run, browser):
    _, out = smoke_run
    for path in (out / "index.html", pages_of(out)[-1]):
        grounds = []
        for scheme in ("light", "dark"):
            page = browser.new_page(offline=True, color_scheme=scheme)
            page.goto(path.as_uri())
            grounds.append(page.screenshot(clip={"x": 2, "y": 300, "width": 1, "height": 1}))
        assert grounds[0] != grounds[1], path.name


def test_on_paper_nothing_is_wider_than_the_sheet(smoke_run, browser):
    _, out = smoke_run
    page = browser.new_page(offline=True, viewport={"width": 718, "height": 1000})  # A4 with Chromium's margins
    page.emulate_media(media="print")
    for path in pages_of(out):
        page.goto(path.as_uri())
        wide = page.evaluate("""[...document.querySelectorAll('table, pre, img')].filter(
            part => part.getBoundingClientRect().right > innerWidth + 1).map(part => part.innerText.slice(0, 60))""")
        assert wide == [], path.name


def test_the_columns_of_every_table_on_the_index_page_are_explained(smoke_run):
    _, out = smoke_run
    explained, shown = set(load_csv("columns")["column"]), set(report.main_table(out))
    for path in out.glob("lessons/*/*.csv"):
        with path.open(encoding="utf8", newline="") as file:
            columns = set(next(csv.reader(file)))
        assert columns <= explained, path
        shown |= columns
    assert shown == explained


def test_the_first_notebook_needs_nothing_and_comes_first():
    assert run.books()[0].name == "00" and not run.books()[0].needs


def test_the_page_of_the_quickstart_answers_twelve_questions_without_a_kernel(smoke_run):
    _, out = smoke_run
    page = (out / "notebooks" / "00.html").read_text("utf8")
    searches = [found for found in re.findall(r"<details.*?</details>", page, re.DOTALL) if "<tr>" in found]
    assert len(searches) == 12 and all(search.count("<tr>") == 5 for search in searches)
    found = {html.unescape(text) for text in re.findall(r'<td dir="auto"[^>]*>(.*?)</td>', page)}
    with (PACKAGE / "data" / "shelf.csv").open(encoding="utf8", newline="") as file:
        assert found <= {row["answer"] for row in csv.DictReader(file)}


def test_the_quick_experiment_ran_every_arm_under_every_seed(smoke_run):
    (base,) = (smoke_run[1] / "experiments").glob("*/near-misses")
    results = json.loads((base / "results.json").read_text("utf8"))
    assert len(results["arms"]) == 4 and len(list((base / "arms").iterdir())) == 4 * len(results["seeds"])
    assert all(0 <= arm["near-misses"]["mean"] <= 1 for arm in results["arms"])


# The atlas, from three places -----------------------------------------------------------------------------------------


def use_atlas(frame):
    """Search, choose and go to another map, as a reader does; a text that was chosen, from what the page shows."""
    frame.locator("#query").fill("DEUTSCH")
    frame.locator("#hits button").first.click()
    frame.locator("#chosen table").wait_for()
    frame.locator("#method").select_option("PCA")
    assert " by PCA. Of a text’s 5 nearest neighbours " in frame.locator("#note").text_content()
    ranks = frame.locator("#chosen td:last-child").all_text_contents()
    assert len(ranks) == 24 and all(1 <= int(rank) <= 10 for rank in ranks)
    return frame.locator("#chosen h2").first.text_content()


def test_the_exported_page_has_the_atlas_at_work(smoke_run, browser):
    heard, page = [], browser.new_page(offline=True)
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto((smoke_run[1] / "notebooks" / "10.html").as_uri())
    assert "deutsch" in use_atlas(page.frame_locator("iframe")).lower() and heard == []


def test_in_jupyterlab_itself_the_atlas_is_at_work(smoke_run, unplugged, browser, tmp_path):
    book = json.loads(next(io.asset("notebooks").glob("10_*.ipynb")).read_text("utf8"))
    last = next(i for i, cell in enumerate(book["cells"]) if "atlas.explorer(" in "".join(cell["source"]))
    parameters = next(cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
    parameters["source"] = ["".join(parameters["source"]).replace('"tiny"', '"smoke"').replace(
        'OUT: str = ""', f"OUT: str = {str(smoke_run[1])!r}")]
    book["cells"] = book["cells"][: last + 1]
    (tmp_path / "10.ipynb").write_text(json.dumps(book), encoding="utf8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join((str(ROOT), unplugged["PYTHONPATH"]))
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
               "--IdentityProvider.token=t", "--LabApp.news_url=None"]
    url, heard = f"http://127.0.0.1:{port}", []
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | unplugged | {"PYTHONPATH": path},
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as lab:  # fmt: skip
        try:
            for _ in range(120):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.5)
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.on("request", lambda request: heard.append(request.url))
            page.goto(f"{url}/lab/tree/10.ipynb?token=t")
            page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)
            ran = page.locator(".jp-InputPrompt", has_text=re.compile(r"\d"))
            for _ in range(5):  # JupyterLab may call a kernel idle that takes no cell yet: then all of Run All is lost
                page.click(".lm-MenuBar-itemLabel:text-is('Run')")
                page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
                page.wait_for_timeout(15_000)
                if ran.count():
                    break
            failed = page.locator(".me5-failed")  # the bar that leads to a cell that failed
            page.locator("iframe[title^='The atlas']").or_(failed).first.wait_for(timeout=300_000)
            assert failed.all_inner_texts() == []
            assert "deutsch" in use_atlas(page.frame_locator("iframe[title^='The atlas']")).lower()
        finally:
            lab.terminate()
    assert heard and [where for where in heard if not where.startswith((url, "data:", "blob:"))] == []
