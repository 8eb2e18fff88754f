"""Runs of notebooks: order, what is run again and what is kept, failures, interrupts, pages without network."""

import json
import re
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
from me5lib.io import Me5Error
from me5lib.lessons import report, run

PARAMETERS = 'SCALE: str = "tiny"\nSEED: int = 0\nOUT: str = ""\nSET: str = ""\nOFFLINE: bool = True'
BEGIN = 'from me5lib.lessons.lesson import begin\n' \
        'lesson = begin("{0}", SCALE, SEED, OUT, SET, OFFLINE)\nexpect = lesson.expect'


def write_book(folder, stem, *cells, needs=(), makes=(), text=""):
    """A notebook of the project's shape; `cells` are code."""
    v4 = nbformat.v4
    parameters = v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    heading = v4.new_markdown_cell(f"# What is {stem}?\n\n{text}")
    code = [v4.new_code_cell(cell) for cell in (BEGIN.format(stem[:2]), *cells)]
    book = v4.new_notebook(cells=[heading, parameters, *code])
    book.metadata["me5"] = {"needs": list(needs), "makes": list(makes)}
    nbformat.write(book, folder / f"{stem}.ipynb")


MAKE = ('(lesson.out / "stage1").mkdir(exist_ok=True)\n(lesson.out / "stage1" / "config.json").write_text("")\n'
        'expect(SEED + 1, "made", smoke=(0, 9))')


@pytest.fixture
def books(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    use = 'assert (lesson.out / "stage1").is_dir()\nwith lesson.timed("a"): expect(0.123456789, "used", smoke=(0, 1))'
    write_book(folder, "01_use", use, needs=["stage1"])
    write_book(folder, "02_make", MAKE, makes=["stage1"])
    return folder


def go(books, out, **options):
    """Run at smoke; the states by notebook."""
    overrides = options.pop("overrides", ())
    dial = config.load("smoke", overrides)
    outcomes = run.run(dial, options.pop("seed", 0), out, overrides=overrides, progress=False,
                       folder=books, **options)
    return {outcome.name: outcome.state for outcome in outcomes}


def test_makers_run_first_and_what_is_finished_is_kept(books, tmp_path):
    out = tmp_path / "out"
    assert list(go(books, out).items()) == [("02", "finished"), ("01", "finished")]
    assert json.loads((out / "results.json").read_text("utf8")) == {"01": {"used": 0.123457}, "02": {"made": 1.0}}
    assert set(json.loads((out / "timings.json").read_text("utf8"))["01"]) == {"a"}
    for name in ("notebooks/01.ipynb", "notebooks/01.html", "index.html", "lessons/01/metrics.json"):
        assert (out / name).is_file()

    assert set(go(books, out).values()) == {"kept"}
    write_book(books, "02_make", MAKE, makes=["stage1"], text="Other words change no result.")
    assert set(go(books, out).values()) == {"kept"}
    write_book(books, "01_use", 'expect(0.5, "used", smoke=(0, 1))', needs=["stage1"])
    assert go(books, out) == {"02": "kept", "01": "finished"}
    assert json.loads((out / "results.json").read_text("utf8"))["01"] == {"used": 0.5}
    # a maker that changes, or whose checkpoint is gone, is run again; so is what needs a changed maker
    shutil.rmtree(out / "stage1")
    assert go(books, out) == {"02": "finished", "01": "kept"}
    write_book(books, "02_make", '(lesson.out / "stage1").mkdir(exist_ok=True)', makes=["stage1"])
    assert go(books, out) == {"02": "finished", "01": "finished"}
    # other parameters are another run
    assert go(books, out, overrides=["train.steps=2"], only=["02"]) == {"02": "finished"}


def test_another_version_or_pack_list_runs_again(books, tmp_path, monkeypatch):
    out = tmp_path / "out"
    go(books, out, only=["02"])
    for name, other in (("VERSION", run.VERSION + 1), ("__version__", "another"), ("packs_hash", lambda: "another")):
        assert go(books, out, only=["02"]) == {"02": "kept"}
        monkeypatch.setattr(run, name, other)
        assert go(books, out, only=["02"]) == {"02": "finished"}


def test_makers_of_what_is_not_there_are_added_and_said_first(books, tmp_path, monkeypatch, capsys):
    def execute(book, target, parameters, progress):
        """No kernel is started: the notebook's checkpoints are simply there."""
        shutil.copy(book.path, target)
        for stage in book.makes:
            (target.parents[1] / stage).mkdir(exist_ok=True)
            (target.parents[1] / stage / "config.json").write_text("{}", encoding="utf8")
        return ""

    monkeypatch.setattr(run, "_execute", execute)
    write_book(books, "00_first")
    write_book(books, "03_more", needs=["stage1"], makes=["stage2", "other"])
    write_book(books, "04_last", needs=["stage1", "stage2"])
    out = tmp_path / "out"
    assert list(go(books, out, only=["04", "00"])) == ["00", "02", "03", "04"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["02  added     it makes stage1, which 04 needs",
                         "03  added     it makes stage2, which 04 needs"]
    assert [line.split()[:2] for line in lines[2:]] == [[n, "finished"] for n in ("00", "02", "03", "04")]

    assert go(books, out, only=["04"]) == {"04": "kept"}
    # made with other dials, it is not there
    only = {"only": ["04"], "overrides": ["train.steps=2"]}
    assert set(go(books, out, **only)) == {"02", "03", "04"}
    # brought from elsewhere it is, whatever it was made with
    other = tmp_path / "other"
    for stage in ("stage1", "stage2"):
        shutil.copytree(out / stage, other / stage)
    assert go(books, other, **only) == {"04": "finished"}
    shutil.rmtree(other / "stage2")
    assert set(go(books, other, **only)) == {"03", "04"}


def test_a_failing_notebook_is_told_in_one_line_and_stops_or_not(books, tmp_path, capsys):
    out = tmp_path / "out"
    write_book(books, "02_make", 'expect(0.2, "accuracy", smoke=(0.5, 1.0))', makes=["stage1"])
    write_book(books, "03_other", 'expect(1, "one", smoke=(0, 1))')
    assert go(books, out) == {"02": "failed"}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert line.startswith("notebook 02 failed: Missed: accuracy = 0.2, expected between 0.5 and 1")
    assert "Missed" in (out / "notebooks" / "02.ipynb").read_text("utf8")
    assert "accuracy = 0.2" in (out / "index.html").read_text("utf8")
    assert json.loads((out / "results.json").read_text("utf8")) == {}

    assert go(books, out, keep_going=True) == {"02": "failed", "01": "failed", "03": "finished"}
    assert json.loads((out / "results.json").read_text("utf8")) == {"03": {"one": 1.0}}


def test_a_value_of_an_override_may_hold_spaces_and_quotes(books, tmp_path):
    teacher = """models/it's "my" teacher"""
    write_book(books, "05_set", "lesson.record('teacher', lesson.scale.finetune.teacher)\nlesson.record('set', SET)")
    overrides = ["train.steps=2", f"finetune.teacher={teacher}"]
    assert go(books, tmp_path / "out", only=["05"], overrides=overrides) == {"05": "finished"}
    assert json.loads((tmp_path / "out" / "results.json").read_text("utf8"))["05"]["teacher"] == teacher


def test_two_runs_with_one_seed_leave_equal_results(books, tmp_path):
    for name in ("a", "b"):
        go(books, tmp_path / name)
    assert (tmp_path / "a" / "results.json").read_bytes() == (tmp_path / "b" / "results.json").read_bytes()


def test_kernel_is_the_interpreter_we_run_in_whatever_is_installed(books, tmp_path, monkeypatch):
    """A user's own kernel named python3 that points elsewhere must not be picked."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    elsewhere = {"argv": ["/nowhere/python"], "display_name": "x", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(elsewhere), encoding="utf8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("ME5_CACHE", str(tmp_path / "cache"))
    write_book(books, "05_who", 'import os, sys\nlesson.record("who", sys.executable)\n'
                                'lesson.record("cache", os.environ["ME5_CACHE"])\n'
                                'lesson.record("offline", os.environ["HF_HUB_OFFLINE"])')
    assert go(books, tmp_path / "out", only=["05"]) == {"05": "finished"}
    seen = json.loads((tmp_path / "out" / "results.json").read_text("utf8"))["05"]
    assert seen == {"who": sys.executable, "cache": str(tmp_path / "cache"), "offline": "1"}


# A shell's background job starts with Ctrl-C ignored, and a suite may be one: the child listens to it again.
RUN = """
import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)
from me5lib.lessons import run; from me5lib import config; from pathlib import Path
run.GRACE = {grace}
{more}
run.run(config.load('smoke'), 0, {out!r}, only={only!r}, progress=False, folder=Path({books!r}))
"""


def running(books, out, only=(), more="", grace=run.GRACE):
    """A process that runs `books`."""
    code = RUN.format(out=str(out), books=str(books), only=list(only), more=more, grace=grace)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=io.PACKAGE.parent)


def gone(process):
    """Whether no process has this number, or one that has ended and is not yet waited for."""
    state = Path(f"/proc/{process}/stat")
    return not state.is_file() or state.read_text("utf8").rpartition(")")[2].split()[0] == "Z"


def test_interrupt_keeps_what_is_finished(books, tmp_path):
    write_book(books, "03_long", "import time\nlesson.record('at', 1)\ntime.sleep(600)")
    out = tmp_path / "out"
    process = running(books, out)
    wait_for(lambda: text_of(out / "lessons" / "03" / "metrics.json"))
    with pytest.raises(Me5Error, match="another me5 is at work"):
        go(books, out)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    assert go(books, out, only=["01", "02"]) == {"02": "kept", "01": "kept"}
    assert set(json.loads((out / "results.json").read_text("utf8"))) == {"01", "02"}
    assert "03" not in json.loads((out / "state.json").read_text("utf8"))["notebooks"]


DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(lesson.folder / "pid").write_text(str(os.getpid()))
while True:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        (lesson.folder / "heard").touch()
"""


def test_a_kernel_that_does_not_listen_is_killed(books, tmp_path):
    write_book(books, "05_deaf", "lesson.folder.mkdir(parents=True)" + DEAF)
    process = running(books, tmp_path / "out", ["05"], grace=2)
    folder = tmp_path / "out" / "lessons" / "05"
    wait_for(lambda: text_of(folder / "pid"))
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT and (folder / "heard").exists()
    assert errors.strip().splitlines()[-1] == "KeyboardInterrupt" and "Exception" not in errors and "died" not in errors
    assert gone(int(text_of(folder / "pid")))
    assert "05" not in text_of(tmp_path / "out" / "state.json")


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


def test_an_interrupt_that_arrives_in_a_destructor_is_not_lost(books, tmp_path):
    write_book(books, "05_long", "import time\ntime.sleep(600)")
    process = running(books, tmp_path / "out", ["05"], IN_A_DESTRUCTOR)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT, output + errors


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def text_of(path):
    return path.read_text("utf8") if path.is_file() else ""


def test_unknown_notebook_and_hub_scale_are_one_line(books, tmp_path):
    with pytest.raises(Me5Error, match="there is no notebook 17"):
        go(books, tmp_path / "out", only=["17"])
    with pytest.raises(Me5Error, match="base is trained by me5 pretrain and me5 finetune .*me5 evaluate --model"):
        run.run(config.load("base"), 0, tmp_path / "out", folder=books)
    assert not (tmp_path / "out").exists()


def test_order_is_by_number_except_where_one_needs_another(books):
    write_book(books, "00_first", needs=["from elsewhere"])
    write_book(books, "03_again", needs=["stage2"], makes=["stage2"])
    assert [book.name for book in run.books(books)] == ["00", "02", "01", "03"]


def test_circular_needs_are_told(books):
    write_book(books, "03_x", needs=["y"], makes=["x"])
    write_book(books, "04_y", needs=["x"], makes=["y"])
    with pytest.raises(Me5Error, match="circle"):
        run.books(books)


class Outside(HTMLParser):
    """Collects whatever a page loads from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        address = given.get("src") or (given.get("href") if tag in ("link", "base") else None) or ""
        if re.match(r"(https?:)?//", address) or (tag == "script" and "src" in given):
            self.found.append((tag, address))


def loads_from_elsewhere(page):
    parser = Outside()
    parser.feed(page)
    inside_styles = re.findall(r"@import[^;]*https?:[^;]*|url\(\s*[\"']?(?:https?:)?//[^)]*\)", page)
    scripts = re.findall(r"<script.*?</script>", page, flags=re.S)
    return parser.found + inside_styles + [s for s in scripts if re.search(r"[\"'](https?:)?//[^\"']+\.m?js", s)]


TEXT = r"""Inline $\tau = 0.01$ and $\frac{a}{b}$, money is \$5, code `$HOME` stays, snake $x_i * y_j * z_k$.

$$\mathcal{L} = -\frac{1}{B}\sum_{i=1}^{B} \log \frac{e^{s(q_i, p_i)/\tau}}{\sum_j e^{s(q_i, p_j)/\tau}}$$

\begin{aligned} a &= b \\ c &= d \end{aligned}

```python
price = "$x$ and $$y$$"
```

See [the next](02_make.ipynb) and [the report](https://arxiv.org/abs/2402.05672).
"""


def test_pages_need_no_network_and_show_equations(books, tmp_path):
    drawing = ("import ipywidgets, matplotlib\nmatplotlib.use('Agg')\nfrom me5lib.lessons import figures\n"
               "figure, axis = figures.canvas()\nfigures.keep(figure, lesson.folder / 'map.png')\n"
               "import pandas\npandas.DataFrame({'model': ['x'], 'score': [0.5]}).to_csv(lesson.folder / 't.csv')\n"
               "row = {'task': 'gsm', 'model': 'stage 1', 'mean': 0.25, 'low': 0.2, 'high': 0.31}\n"
               "pandas.DataFrame([row]).to_csv(lesson.folder / 'summary.csv', index=False)\n"
               "pandas.DataFrame({'a': range(61)}).to_csv(lesson.folder / 'long.csv')\n"
               "display(ipywidgets.IntSlider(description='steps'))")
    latex = "from IPython.display import Math\ndisplay(Math(r'\\alpha^2'))\nlesson.record('n', 1)"
    write_book(books, "04_page", drawing, latex, text=TEXT)
    out = tmp_path / "out"
    assert go(books, out, only=["04"]) == {"04": "finished"}
    page = (out / "notebooks" / "04.html").read_text("utf8")
    assert loads_from_elsewhere(page) == []
    assert "widget-state" not in page and "MathJax" not in page and "requirejs" not in page.lower()
    assert page.count("<math") == 6  # 3 inline, 1 displayed, 1 environment, 1 output
    assert "<mi>x</mi>" in page and "<em>" not in page
    assert "$HOME" in page and "$$y$$" in page.replace("<span>", "")
    assert 'href="02.html"' in page
    index = (out / "index.html").read_text("utf8")
    assert loads_from_elsewhere(index) == []
    assert 'src="lessons/04/map.png"' in index and "0.500" in index
    assert "0.250 (0.20–0.31)" in index and 'href="lessons/04/long.csv">61 rows' in index
    assert "0.250 (0.20–0.31)" in report.summary(out)
    assert [tag for tag in ("<math", "What is 04_page?") if tag in page] == ["<math", "What is 04_page?"]


def test_formulas_that_the_converter_alone_cannot_do():
    made = report.mathml(r"\texttt{a \{b\}\textbackslash n\_c} + \frac{1}{2}")
    assert re.sub("<[^>]*>", "", made).replace("&#x000A0;", " ") == r"a {b}\n_c&#x0002B;12"
    assert "arg" in report.mathml(r"\arg\max_j x") and "\\" not in report.mathml(r"\arg\max_j x")
    assert report.mathml(r"\nonsense{x}").startswith("<code>")


def test_the_guard_itself_sees_what_pages_load():
    bad = ('<img src="https://cdn/x.png"><link href="//cdn/x.css"><script>import("https://cdn/x.mjs")</script>'
           "<style>@font-face{src:url(https://f/x.woff)}</style><a href='https://fine'>x</a>")
    assert len(loads_from_elsewhere(bad)) == 4


def test_every_formula_of_the_notebooks_becomes_mathml():
    """No formula that ships falls back to code."""
    folder = io.asset("notebooks")
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            if cell.cell_type == "markdown":
                text = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.S)
                for block, inline in re.findall(r"\$\$(.+?)\$\$|(?<![$\\])\$([^$]+?)(?<!\\)\$", text, flags=re.S):
                    made = report.mathml(block or inline)
                    assert made.startswith("<math"), f"{path.name}: {block or inline}"
