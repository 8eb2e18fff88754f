"""Runs of notebooks: order, what is run again and what is kept, failures, interrupts, pages without network."""

import contextlib
import html
import io as streams
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from me5lib import config, io
from me5lib.data import packs
from me5lib.io import Me5Error
from me5lib.lessons import report, run

PARAMETERS = 'SCALE: str = "tiny"\nSEED: int = 0\nOUT: str = ""\nSET: str = ""\nOFFLINE: bool = True'
BEGIN = ('from me5lib.lessons.lesson import begin\n'
         'lesson = begin("{0}", SCALE, SEED, OUT, SET, OFFLINE)\nexpect = lesson.expect')
MAKE = ('(lesson.out / "stage1").mkdir(exist_ok=True)\n(lesson.out / "stage1" / "config.json").write_text("")\n'
        'expect(SEED + 1, "made", smoke=(0, 9))')
USE = 'assert (lesson.out / "stage1").is_dir()\nwith lesson.timed("a"): expect(0.123456789, "used", smoke=(0, 1))'


def write_book(folder, stem, *cells, needs=(), makes=(), text="", **metadata):
    """A notebook of the project's shape; `cells` are code."""
    v4 = nbformat.v4
    parameters = v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    heading = v4.new_markdown_cell(f"# What is {stem}?\n\n{text}")
    code = [v4.new_code_cell(cell) for cell in (BEGIN.format(stem[:2]), *cells)]
    book = v4.new_notebook(cells=[heading, parameters, *code])
    book.metadata["me5"] = {"needs": list(needs), "makes": list(makes), **metadata}
    folder.mkdir(exist_ok=True)
    nbformat.write(book, folder / f"{stem}.ipynb")


@pytest.fixture
def books(tmp_path):
    folder = tmp_path / "books"
    write_book(folder, "01_make", MAKE, makes=["stage1"])
    write_book(folder, "02_use", USE, needs=["stage1"])
    return folder


def go(books, out, overrides=(), **options):
    """Run at smoke; the states by notebook."""
    scale = config.load("smoke", overrides)
    outcomes = run.run_notebooks(scale, 0, out, overrides=overrides, folder=books, **options)
    return {outcome.name: outcome.state for outcome in outcomes}


def content(path):
    return json.loads(path.read_text("utf8"))


# One run with kernels ------------------------------------------------------------------------------------------------

TEXT = r"""Inline $\tau = 0.01$ and $\frac{a}{b}$, money is \$5, code `$HOME` stays, snake $x_i * y_j * z_k$.

$$\mathcal{L} = -\frac{1}{B}\sum_{i=1}^{B} \log \frac{e^{s(q_i, p_i)/\tau}}{\sum_j e^{s(q_i, p_j)/\tau}}$$

\begin{aligned} a &= b \\ c &= d \end{aligned}

```python
price = "$x$ and $$y$$"
```

See [the one before](01_make.ipynb) and [the report](https://arxiv.org/abs/2402.05672).
"""
DRAW = """import ipywidgets, pandas
from me5lib.lessons import figures
display(figures.keep(figures.canvas()[0], lesson.folder / 'map.png', 'Up: "F1" < 1 and τ.'))
pandas.DataFrame({'model': ['x'], 'score': [0.5]}).to_csv(lesson.folder / 't.csv')
row = {'task': 'gsm', 'model': 'stage 1', 'mean': 0.25, 'low': 0.2, 'high': 0.31}
pandas.DataFrame([row]).to_csv(lesson.folder / 'summary.csv', index=False)
pandas.DataFrame({'a': range(61)}).to_csv(lesson.folder / 'long.csv')
display(ipywidgets.IntSlider(description='steps'))"""
BUSY = """import sys
for i in range(101): print(f"\\rtrained {i} %", end="", flush=True)
for i in range(4): print(f"warning {i}", file=sys.stderr, flush=True)
from tqdm.auto import tqdm
for i in (*tqdm(range(3)), *tqdm(iter("abc"))): pass"""
WHO = """import os, sys
for name, value in (("who", sys.executable), ("cache", os.environ["ME5_CACHE"]), ("set", SET),
                    ("offline", os.environ["HF_HUB_OFFLINE"]), ("teacher", lesson.scale.finetune.teacher)):
    lesson.record(name, value)"""
TEACHER = """models/it's "my" teacher"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Three notebooks executed, one of which fails: states, folder, standard error, and the cache folder.

    A user's own kernel named python3, which points elsewhere, is installed.
    """
    folder = tmp_path_factory.mktemp("run")
    books, spec = folder / "books", folder / "jupyter" / "kernels" / "python3"
    write_book(books, "01_make", MAKE, makes=["stage1"])
    write_book(books, "02_use", USE, WHO, BUSY, DRAW, needs=["stage1"], text=TEXT)
    write_book(books, "03_bad", 'raise ValueError("it is\\nwrong")')
    spec.mkdir(parents=True)
    elsewhere = {"argv": ["/nowhere/python"], "display_name": "x", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(elsewhere), encoding="utf8")
    errors = streams.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("ME5_CACHE", str(folder / "cache"))
        states = go(books, folder / "out", ["train.steps=2", f"finetune.teacher={TEACHER}"], keep_going=True)
    return states, folder / "out", errors.getvalue(), folder / "cache"


def test_makers_run_first_with_our_python_and_settings_and_results_are_kept_apart_from_times(done):
    states, out, _, cache = done
    assert list(states.items()) == [("01", "finished"), ("02", "finished"), ("03", "failed")]
    assert content(out / "results.json") == {"02": {
        "used": 0.123457, "who": sys.executable, "cache": str(cache), "offline": "1", "teacher": TEACHER,
        "set": f"train.steps=2 {shlex.quote(f'finetune.teacher={TEACHER}')}"}, "01": {"made": 1.0}}
    assert set(content(out / "timings.json")["02"]) == {"a"}
    assert all((out / name).is_file() for name in ("notebooks/02.ipynb", "notebooks/02.html", "index.html"))


def test_a_failing_notebook_is_told_in_one_line(done):
    _, out, errors, _ = done
    (line,) = [line for line in errors.splitlines() if "failed" in line]
    assert line == "notebook 03 failed: ValueError: it is wrong (cell 4)"
    assert "ValueError" in (out / "notebooks" / "03.ipynb").read_text("utf8")
    assert "ValueError: it is wrong" in (out / "index.html").read_text("utf8")


def loads_from_elsewhere(page):
    """Whatever a page would load from elsewhere."""
    found = []

    class Outside(HTMLParser):
        def handle_starttag(self, tag, attributes):
            given = dict(attributes)
            address = given.get("src") or (given.get("href") if tag in ("link", "base") else None) or ""
            if re.match(r"(https?:)?//", address) or (tag == "script" and "src" in given):
                found.append((tag, address))

    Outside().feed(page)
    inside_styles = re.findall(r"@import[^;]*https?:[^;]*|url\(\s*[\"']?(?:https?:)?//[^)]*\)", page)
    scripts = re.findall(r"<script.*?</script>", page, flags=re.S)
    return found + inside_styles + [s for s in scripts if re.search(r"[\"'](https?:)?//[^\"']+\.m?js", s)]


def test_pages_need_no_network_and_show_equations(done):
    bad = ('<img src="https://cdn/x.png"><link href="//cdn/x.css"><script>import("https://cdn/x.mjs")</script>'
           "<style>@font-face{src:url(https://f/x.woff)}</style><a href='https://fine'>x</a>")
    assert len(loads_from_elsewhere(bad)) == 4
    _, out, _, _ = done
    page = (out / "notebooks" / "02.html").read_text("utf8")
    assert loads_from_elsewhere(page) == []
    assert "widget-state" not in page and "MathJax" not in page and "requirejs" not in page.lower()
    assert page.count("<math") == 5  # 3 inline, 1 displayed, 1 environment
    assert "<mi>x</mi>" in page and "<em>" not in page and "What is 02_use?" in page
    assert "$HOME" in page and "$$y$$" in page.replace("<span>", "")
    assert 'href="01.html"' in page
    index = (out / "index.html").read_text("utf8")
    assert loads_from_elsewhere(index) == []
    assert 'src="lessons/02/map.png" alt="Up: &#34;F1&#34; &lt; 1 and τ."' in index and "0.500" in index
    assert "0.250 (0.20–&NoBreak;0.31)" in index and 'href="lessons/02/long.csv">61 rows' in index
    assert "numbers masked" in index and "between 0 and 1" in index and ">mteb_version<" not in index
    assert "0.250 (0.20–0.31)" in report.run_summary(out) and "ValueError: it is wrong" in report.run_summary(out)


def test_of_progress_a_page_shows_the_end_and_of_a_picture_the_caption_once(done):
    _, out, _, _ = done
    page = (out / "notebooks" / "02.html").read_text("utf8")
    assert "trained 100 %" in page and "trained 99 %" not in page
    assert page.count("Interactive: open") == 1 and "0/3 [00:00" not in page
    assert "<summary>4 lines … warning 3</summary>" in page
    found = re.search(r"<img alt=(['\"])(.*?)\1 src=.data:image/png;base64[^>]*><figcaption>(.*?)<", page).groups()[1:]
    assert [html.unescape(text) for text in found] == 2 * ['Up: "F1" < 1 and τ.']
    assert '"image/png"' not in (out / "notebooks" / "02.ipynb").read_text("utf8")


def test_formulas_become_mathml_and_none_that_ships_falls_back_to_code():
    assert re.sub("<[^>]*>", "", report.mathml(r"\text{a} + \frac{1}{2}")) == "a&#x0002B;12"
    assert report.mathml(r"\nonsense{x}").startswith("<code>")
    for path in sorted(io.asset("notebooks").glob("[0-9][0-9]_*.ipynb")):
        texts = ["".join(cell["source"]) for cell in content(path)["cells"] if cell["cell_type"] == "markdown"]
        for text in (re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S) for text in texts):
            for block, inline in re.findall(r"\$\$(.+?)\$\$|(?<![$\\])\$([^$]+?)(?<!\\)\$", text, flags=re.S):
                assert report.mathml(block or inline).startswith("<math"), f"{path.name}: {block or inline}"


# What is run, and what is not: no kernel is needed -------------------------------------------------------------------


@pytest.fixture
def no_kernel(monkeypatch):
    """Nothing is executed: the checkpoints of a notebook are simply there, and one titled "bad" fails."""

    def execute(book, target, parameters):
        shutil.copy(book.path, target)
        for stage in book.makes:
            (target.parents[1] / stage).mkdir(exist_ok=True)
            (target.parents[1] / stage / "config.json").write_text("{}", encoding="utf8")
        return "ValueError: it is wrong" if "bad" in book.title else ""

    monkeypatch.setattr(run, "_execute", execute)


def test_what_is_finished_is_kept_until_it_or_what_it_needs_changes(books, tmp_path, monkeypatch, no_kernel):
    out = tmp_path / "out"
    assert list(go(books, out).items()) == [("01", "finished"), ("02", "finished")]
    assert set(go(books, out).values()) == {"kept"}
    write_book(books, "01_make", MAKE, makes=["stage1"], text="Other words change no result.")
    assert set(go(books, out).values()) == {"kept"}
    write_book(books, "02_use", "other = USE", needs=["stage1"])
    assert go(books, out) == {"01": "kept", "02": "finished"}
    # a maker that changes, or whose checkpoint is gone, is run again; so is what needs a changed maker
    shutil.rmtree(out / "stage1")
    assert go(books, out) == {"01": "finished", "02": "kept"}
    write_book(books, "01_make", "other = MAKE", makes=["stage1"])
    assert go(books, out) == {"01": "finished", "02": "finished"}
    # other parameters are another run, and so is another version or list of packs
    assert go(books, out, ["train.steps=2"], only=["01"]) == {"01": "finished"}
    for module, name, other in ((run, "VERSION", run.VERSION + 1), (run, "__version__", "another"),
                                (packs, "wanted", dict)):
        monkeypatch.setattr(module, name, other)
        assert go(books, out, ["train.steps=2"], only=["01"]) == {"01": "finished"}
        assert go(books, out, ["train.steps=2"], only=["01"]) == {"01": "kept"}


def test_makers_of_what_is_not_there_are_added_and_said_first(books, tmp_path, capsys, no_kernel):
    write_book(books, "00_first")
    write_book(books, "03_more", needs=["stage1"], makes=["stage2", "other"])
    write_book(books, "04_last", needs=["stage1", "stage2"])
    out = tmp_path / "out"
    assert list(go(books, out, only=["04", "00"])) == ["00", "01", "03", "04"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["01  added     it makes stage1, which 04 needs",
                         "03  added     it makes stage2, which 04 needs"]
    assert [line.split()[:2] for line in lines[2:]] == [[n, state] for n in ("00", "01", "03", "04")
                                                         for state in ("runs", "finished")]
    assert go(books, out, only=["04"]) == {"04": "kept"}
    # made with other settings, it is not there; brought from elsewhere it is, whatever it was made with
    other = tmp_path / "other"
    for stage in ("stage1", "stage2"):
        shutil.copytree(out / stage, other / stage)
    assert set(go(books, out, ["train.steps=2"], only=["04"])) == {"01", "03", "04"}
    assert go(books, other, ["train.steps=2"], only=["04"]) == {"04": "finished"}
    shutil.rmtree(other / "stage2")
    assert set(go(books, other, ["train.steps=2"], only=["04"])) == {"03", "04"}


def test_a_run_says_what_runs_what_waits_and_how_long_by_its_last_time_or_by_how_slow_the_machine_is(
        tmp_path, capsys, monkeypatch):
    books, out, clock = tmp_path / "timed", tmp_path / "out", [0.0]
    for name, minutes in (("00", 1), ("01", 2), ("02", 10)):
        write_book(books, f"{name}_timed", minutes=minutes)
    took = {"00": 180, "01": 600, "02": 1200}  # seconds: three times the minutes, then five times, then twice

    def execute(book, target, parameters):
        target.write_text(book.path.read_text("utf8"), encoding="utf8")
        clock[0] += took[book.name]
        return ""

    monkeypatch.setattr(run, "_execute", execute)
    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])

    def said(scale, **options):
        run.run_notebooks(config.load(scale), 0, out / scale, folder=books, **options)
        lines = capsys.readouterr().out.splitlines()
        return {line[:2]: line.partition("(")[2][:-1] for line in lines if " runs " in line}

    assert said("tiny") == {"00": "about 1.0 min; then 01 02; 13.0 min in all",
                            "01": "about 6.0 min; then 02; 36.0 min in all",
                            "02": "about 40.0 min; the last; 40.0 min in all"}
    assert said("tiny") == {}
    for name in ("01", "02"):
        (out / "tiny" / "notebooks" / f"{name}.ipynb").unlink()
    assert said("tiny") == {"01": "about 10.0 min; then 02; 30.0 min in all",
                            "02": "about 20.0 min; the last; 20.0 min in all"}
    assert said("smoke")["00"] == "then 01 02"  # nobody has measured this scale


def test_a_failure_stops_the_run_or_not(books, tmp_path, no_kernel):
    write_book(books, "00_bad")
    assert go(books, tmp_path / "out") == {"00": "failed"}
    assert content(tmp_path / "out" / "results.json") == {}
    assert go(books, tmp_path / "out", keep_going=True) == {"00": "failed", "01": "finished", "02": "finished"}


def test_unknown_notebook_and_hub_scale_are_one_line(books, tmp_path):
    with pytest.raises(Me5Error, match="there is no notebook 17"):
        go(books, tmp_path / "out", only=["17"])
    with pytest.raises(Me5Error, match="base is trained by me5 pretrain and me5 finetune .*me5 evaluate --model"):
        run.run_notebooks(config.load("base"), 0, tmp_path / "out", folder=books)
    assert not (tmp_path / "out").exists()


def test_of_what_ships_makers_have_a_lower_number_than_who_needs_them():
    made = set()
    for book in run.books():
        assert made.issuperset(book.needs), book.name
        made.update(book.makes)


# Interrupts ----------------------------------------------------------------------------------------------------------

# A shell's background job starts with Ctrl-C ignored, and a suite may be one: the child listens to it again.
RUN = """
import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)
from me5lib.lessons import run; from me5lib import config; from pathlib import Path
run.GRACE = {grace}
{more}
run.run_notebooks(config.load('smoke'), 0, {out!r}, only={only!r}, folder=Path({books!r}))
"""
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lesson.record('at', 1)
(lesson.folder / "pid").write_text(str(os.getpid()))
while True:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        (lesson.folder / "heard").touch()
"""
# Where Python swallows whatever is raised: nothing in the process may rely on an exception of the signal's moment.
IN_A_DESTRUCTOR = """
class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
from papermill.engines import NotebookExecutionManager as Manager
start = Manager.cell_start
def cell_start(self, cell, index, **options):
    start(self, cell, index, **options)
    if "sleep" in cell.source:
        Dying()
Manager.cell_start = cell_start
"""


def running(books, out, only, more="", grace=run.GRACE):
    """A process that runs `books`."""
    code = RUN.format(out=str(out), books=str(books), only=only, more=more, grace=grace)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=io.PACKAGE.parent)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def gone(process):
    """Whether no process has this number, or one that has ended and is not yet waited for."""
    state = Path(f"/proc/{process}/stat")
    return not state.is_file() or state.read_text("utf8").rpartition(")")[2].split()[0] == "Z"


def test_an_interrupt_keeps_what_is_finished_and_kills_a_kernel_that_does_not_listen(books, tmp_path):
    write_book(books, "05_deaf", DEAF)
    out, pid = tmp_path / "out", tmp_path / "out" / "lessons" / "05" / "pid"
    process = running(books, out, ["01", "05"], grace=2)
    wait_for(lambda: pid.is_file() and pid.read_text("utf8"))
    with pytest.raises(Me5Error, match="another me5 is at work"):
        go(books, out)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT and (pid.parent / "heard").exists()
    assert errors.strip().splitlines()[-1] == "KeyboardInterrupt" and "Exception" not in errors and "died" not in errors
    assert gone(int(pid.read_text("utf8")))
    assert go(books, out, only=["01"]) == {"01": "kept"}
    assert set(content(out / "results.json")) == {"01"}
    assert "05" not in content(out / "state.json")["notebooks"]


def test_an_interrupt_that_arrives_in_a_destructor_is_not_lost(books, tmp_path):
    write_book(books, "05_long", "import time\ntime.sleep(600)")
    process = running(books, tmp_path / "out", ["05"], IN_A_DESTRUCTOR)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT, output + errors
