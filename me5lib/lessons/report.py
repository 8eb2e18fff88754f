"""The pages of a run, which need no network: an HTML of each notebook (equations as MathML) and `index.html`.

    page(Path("runs/…/notebooks/06.ipynb"))     # → 06.html beside it
    index(out)                                  # → index.html with tables and pictures

Design: nbconvert renders; its scripts from content networks are left out, formulas are turned to MathML when the page
is made, and widgets (which need a kernel) are left to their static twins. Cost: about a second a notebook.
"""

from __future__ import annotations

import html
import re
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from me5lib import io

if TYPE_CHECKING:
    from pandas import DataFrame

_TEMPLATE = """{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
"""
_INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem }
td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; margin: .4rem 0 }
.failed { color: #b00020 }
details > summary { cursor: pointer; color: #0072B2 }
</style></head><body>
<h1>{{ title }}</h1>
<table><tr><th>notebook</th><th></th><th>time</th></tr>
{%- for name, book in books %}
<tr><td><a href="#{{ name }}">{{ name }} · {{ book.title }}</a></td>
<td>{% if book.state == "finished" %}finished{% else %}<span class="failed">{{ book.error }}</span>{% endif %}</td>
<td class="n">{{ "%.0f" % book.seconds }} s</td></tr>
{%- endfor %}
</table>
<p><a href="results.json">results.json</a> has every number, <a href="timings.json">timings.json</a> every time.</p>
{%- if main_table %}
<h2>The main table</h2><p>Mean over languages, between 0 and 1; in brackets the 95 % interval over languages.</p>
{{ main_table | safe }}
{%- endif %}
{%- for name, book in books %}
<h2 id="{{ name }}">{{ name }} · {{ book.title }}</h2>
<p><a href="notebooks/{{ name }}.html">the executed notebook</a></p>
{%- for picture in book.pictures %}
<img src="lessons/{{ name }}/{{ picture.name }}" alt="{{ picture.stem }}">
{%- endfor %}
{%- for path, table in book.tables %}
<h3>{{ path.stem }}</h3>
{% if table is string %}{{ table | safe }}{% else -%}
<p><a href="lessons/{{ name }}/{{ path.name }}">{{ table }} rows</a></p>{% endif %}
{%- endfor %}
{%- if book.metrics %}
<details><summary>{{ book.metrics | length }} metrics</summary><table>
{%- for key, value in book.metrics.items() %}
<tr><td>{{ key }}</td><td class="n">{{ value if value is string else "%.4g" % value }}</td></tr>
{%- endfor %}
</table></details>
{%- endif %}
{%- endfor %}
</body></html>
"""
MOST_ROWS = 60  # of a table on the index page; a longer one is linked


def mathml(latex: str, block: bool = False) -> str:
    """MathML of a LaTeX formula; the formula as code where it cannot be turned."""
    from latex2mathml.converter import convert

    try:
        made = convert(latex.strip(), display="block" if block else "inline")
    except Exception:  # whatever the parser trips over: the source is still readable
        made = "\\"
    return f"<code>{html.escape(latex)}</code>" if "\\" in made else made


@cache
def _exporter():
    from jinja2 import pass_context
    from nbconvert.exporters.html import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        inline_math = staticmethod(mathml)
        block_math = staticmethod(partial(mathml, block=True))

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)

    class Offline(HTMLExporter):
        @pass_context
        def markdown2html(self, context: object, source: str) -> str:
            attachments = context.get("cell", {}).get("attachments", {})
            return MarkdownWithMath(renderer=Renderer(escape=False, attachments=attachments)).render(source)

        def from_notebook_node(self, nb: dict, resources: dict | None = None, **options: object) -> tuple[str, dict]:
            """Without what would need a kernel or the network: widgets, JavaScript."""
            nb.metadata.pop("widgets", None)
            for data in (output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", [])):
                if data.pop("application/vnd.jupyter.widget-view+json", None) is not None:
                    data.pop("text/html", None)
                    data["text/plain"] = "(interactive: open the notebook in JupyterLab)"
                data.pop("application/javascript", None)
            nb.metadata["title"] = notebook_title(nb)
            return super().from_notebook_node(nb, resources, **options)

    return Offline(raw_template=_TEMPLATE, template_name="lab", anchor_link_text=" ")


def page(notebook: Path) -> Path:
    """Write the HTML of an executed notebook beside it; returns its path."""
    content, _ = _exporter().from_filename(str(notebook))
    path = notebook.with_suffix(".html")
    path.write_text(re.sub(r'href="([0-9]{2})_[^"/]*\.ipynb"', r'href="\1.html"', content), encoding="utf8")
    return path


def notebook_title(book: dict) -> str:
    """The first heading of a notebook, plain and without its number."""
    lines = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown").splitlines()
    heading = next((line for line in lines if line.startswith("#")), "")
    return re.sub(r"^[# ]*(\d\d\b[ ·.:]*)?|[`*]", "", heading)


def index(out: Path) -> Path:
    """Write `index.html` of the run in `out` from its state, metrics, tables (CSV) and pictures (PNG)."""
    import pandas
    from jinja2 import Environment

    settings, books = _state(out)
    for name, book in books:
        folder = out / "lessons" / name
        book["pictures"] = sorted(folder.glob("*.png"))
        tables = [(path, pandas.read_csv(path)) for path in sorted(folder.glob("*.csv"))]
        book["tables"] = [(path, len(table) if len(table) > MOST_ROWS else table.to_html(
            index=False, border=0, float_format="{:.3f}".format, na_rep="")) for path, table in tables]  # fmt: skip
    table = main_table(out)
    path = out / "index.html"
    path.write_text(Environment(autoescape=True).from_string(_INDEX).render(
        title=f"me5 · scale {settings.get('scale', '?')} · seed {settings.get('seed', '?')}", books=books,
        main_table=None if table is None else table.to_html(border=0, na_rep=""),
    ), encoding="utf8")  # fmt: skip
    return path


def run_summary(out: Path) -> str:
    """What became of each notebook and the numbers it recorded, as plain lines."""
    lines = []
    for name, book in _state(out)[1]:
        lines.append(f"{name}  {book['state']:9} {book['seconds']:6.0f} s  {book['title']}")
        lines += [f"      {book['error']}"] if book["error"] else []
        lines += [f"      {key:48} {value if isinstance(value, str) else f'{value:.4g}'}"
                  for key, value in book["metrics"].items()]
    if (table := main_table(out)) is not None:
        lines += ["", table.to_string(na_rep="", line_width=140)]  # more columns than fit stand below
    return "\n".join(lines)


def _state(out: Path) -> tuple[dict, list[tuple[str, dict]]]:
    """The settings of a run, and its notebooks by number, each with the metrics that it recorded."""
    state = io.read_json(out / "state.json", {})
    books = sorted(state.get("notebooks", {}).items())
    for name, book in books:
        book["metrics"] = io.read_json(out / "lessons" / name / "metrics.json", {})
    return state.get("settings", {}), books


def main_table(out: Path) -> DataFrame | None:
    """Models × tasks, "mean (low–high)", from the summary that the last lesson wrote; None where none did."""
    import pandas

    for path in sorted((out / "lessons").glob("*/summary.csv"), reverse=True):
        frame = pandas.read_csv(path)
        if {"task", "model", "mean", "low", "high"} <= set(frame.columns):
            frame["text"] = [f"{row.mean:.3f} ({row.low:.2f}–{row.high:.2f})" for row in frame.itertuples(index=False)]
            table = frame.pivot_table(index="model", columns="task", values="text", aggfunc="first", sort=False)
            return table.fillna("").rename_axis(index=None, columns=None)
    return None
