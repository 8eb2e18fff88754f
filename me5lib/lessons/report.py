"""The pages of a run, which need no network: an HTML of each notebook (equations as MathML) and `index.html`.

    pages(Path("runs/…/notebooks/06.ipynb"))    # → 06.html beside it
    index(out)                                  # → index.html with tables and pictures

Design: nbconvert renders; its scripts from content networks are left out, formulas are turned to MathML when the page
is made, and widgets (which need a kernel) are left to their static twins. A bar has the contents and leads from page to
page in the order of the story, without JavaScript. Cost: about a second a notebook.
"""

from __future__ import annotations

import html
import json
import re
from functools import cache, partial
from io import StringIO
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
{%- block notebook_css -%}{{ super() | slim }}
{{ resources.include_css("static/theme-dark.css") | replace("<style", "<style media='(prefers-color-scheme: dark)'") }}
<style>/* pages.css */</style>{%- endblock -%}
{%- macro folded(shown, text, most) -%}{%- set lines = text.strip().splitlines() -%}
{%- if lines | length <= most -%}{{ shown }}{%- else -%}
<details class="lines"><summary>{{ lines | length }} lines … {{ lines[-1] | ansi2html }}</summary>{{ shown }}</details>
{%- endif -%}{%- endmacro -%}
{%- block stream_stdout -%}{{ folded(super(), output.text, 30) }}{%- endblock -%}
{%- block stream_stderr -%}{{ folded(super(), output.text, 3) }}{%- endblock -%}
"""
_INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: .6rem 0; font-size: .9rem }
td, th { padding: .2rem .7rem; border-bottom: 1px solid #8886; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 }
figcaption { max-width: 46rem }
img { max-width: 100% }
</style></head><body>
<h1>{{ title }}</h1>
<table><tr><th>notebook</th><th></th><th>time</th><th></th></tr>
{%- for name, book in books %}
<tr><td>{{ name }} · <a href="notebooks/{{ name }}.html">{{ book.title }}</a>
{%- for page in book.more %}, <a href="notebooks/{{ name }}-{{ page }}.html">{{ page }}</a>{% endfor %}</td>
<td>{% if book.state == "finished" %}finished{% else %}<b>{{ book.error }}</b>{% endif %}</td>
<td class="n">{{ "%.0f" % book.seconds }} s</td><td><a href="#{{ name }}">results</a></td></tr>
{%- endfor %}
</table>
<p><a href="results.json">results.json</a> has every number, <a href="timings.json">timings.json</a> every time.</p>
{%- if main is not none %}
<h2>The main table</h2><p>Mean over languages, between 0 and 1; in brackets the 95 % interval over languages.</p>
{{ main.to_html(border=0, na_rep="") | replace("–", "–&NoBreak;") | safe }}
<p>What its columns are{{ " (at this scale stand-ins for them, made of CLDR)" if scale == "smoke" }}:</p>
{{ explain(main) | safe }}
{%- endif %}
{%- for name, book in books %}
<h2 id="{{ name }}">{{ name }} · {{ book.title }}</h2>
{%- for picture, caption in book.pictures %}
<figure><img src="lessons/{{ name }}/{{ picture.name }}" alt="{{ caption or picture.stem }}">
<figcaption>{{ caption or "" }}</figcaption></figure>
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
{% if shown %}<h2>What the columns of the tables are</h2>{{ explain(shown) | safe }}{% endif %}
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
                    over = re.search(r"\[\d+:\d\d", data.get("text/plain", ""))  # a bar, with a total or without
                    data.clear()
                    data["text/html"] = "" if over else "<i>Interactive: open the notebook in JupyterLab.</i>"
                data.pop("application/javascript", None)
            nb.metadata["title"] = notebook_title(nb)
            return super().from_notebook_node(nb, resources, **options)

    slim = partial(re.sub, r"/\*.*?\*/|url\(([\"']?)data:.*?\1\)|\n\s+", "\n", flags=re.S)  # no icons of the lab's
    css = (io.PACKAGE / "lessons" / "pages.css").read_text("utf8")
    return Offline(raw_template=_TEMPLATE.replace("/* pages.css */", css), anchor_link_text=" ", filters={"slim": slim},
                   preprocessors=["nbconvert.preprocessors.CoalesceStreamsPreprocessor"])  # of a bar, its last state


def pages(notebook: Path) -> None:
    """Write the HTML of an executed notebook beside it, and lead from page to page of its folder.

    A page of its own, `<notebook>-<name>.html`, begins at a cell that is tagged `page:<name>`.
    """
    for old in notebook.parent.glob(f"{notebook.stem}*.html"):
        old.unlink()
    book = io.read_json(notebook)
    starts = {0: ""} | {i: f"-{tag[5:]}" for i, cell in enumerate(book["cells"])
                        for tag in cell["metadata"].get("tags", ()) if tag.startswith("page:")}
    for (start, name), end in zip(starts.items(), [*starts, None][1:], strict=True):
        content, _ = _exporter().from_file(StringIO(json.dumps(book | {"cells": book["cells"][start:end]})))
        content = re.sub(r'href="([0-9]{2})_[^"/]*\.ipynb"', r'href="\1.html"', content)
        (notebook.parent / f"{notebook.stem}{name}.html").write_text(content, encoding="utf8")
    link_pages(notebook.parent)


def link_pages(folder: Path) -> None:
    """Give every page of `folder` its bar: the index, the page before it, its contents, the next; at its foot again."""
    paths = sorted(folder.glob("[0-9][0-9]*.html"), key=lambda path: path.stem)
    contents = [re.sub("<nav>.*?</nav>|<footer>.*?</footer>", "", path.read_text("utf8"), flags=re.S) for path in paths]
    titles = [re.search("<title>(.*?)</title>", content)[1] for content in contents]
    for i, (path, content) in enumerate(zip(paths, contents, strict=True)):
        around = {"prev": ("←", i - 1), "next": ("→", i + 1)}
        before, after = (f'<a rel="{rel}" href="{paths[j].name}">{arrow} {paths[j].stem[:2]} · {titles[j]}</a>'
                         if 0 <= j < len(paths) else "" for rel, (arrow, j) in around.items())
        headings = re.findall('<(h[23]) id="(.*?)">(.*?)<a class="anchor-link"', content, flags=re.S)
        items = "".join(f'<li class="{level}"><a href="#{place}">{text}</a></li>' for level, place, text in headings)
        bar = (f'<nav><a href="../index.html">Index</a>{before}<details><summary>Contents</summary>'
               f'<ul onclick="parentNode.open = false">{items}</ul></details>{after}</nav>')
        content = content.replace("<main>", f"{bar}<main>", 1).replace(
            "</main>", f"</main><footer><span>{before}</span><span>{after}</span></footer>", 1)
        path.write_text(content, encoding="utf8")


def notebook_title(book: dict) -> str:
    """The first heading of a notebook, plain and without its number."""
    lines = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown").splitlines()
    heading = next((line for line in lines if line.startswith("#")), "")
    return re.sub(r"^[# ]*(\d\d\b[ ·.:]*)?|[`*]", "", heading)


def index(out: Path) -> Path:
    """Write `index.html` of the run in `out` from its state, metrics, tables (CSV) and pictures (PNG)."""
    import pandas
    from jinja2 import Environment
    from PIL import Image

    from me5lib.evaluate.paper import load_csv

    settings, books = _state(out)
    columns, shown = load_csv("columns"), set()
    for name, book in books:
        folder = out / "lessons" / name
        book["more"] = sorted(path.stem[3:] for path in (out / "notebooks").glob(f"{name}-*.html"))
        book["pictures"] = [(path, Image.open(path).info.get("Description")) for path in sorted(folder.glob("*.png"))]
        tables = [(path, pandas.read_csv(path)) for path in sorted(folder.glob("*.csv"))]
        shown.update(*(table for _, table in tables))
        book["tables"] = [(path, len(table) if len(table) > MOST_ROWS else table.to_html(
            index=False, border=0, float_format="{:.3f}".format, na_rep="")) for path, table in tables]  # fmt: skip
    path, scale = out / "index.html", settings.get("scale", "?")
    path.write_text(Environment(autoescape=True).from_string(_INDEX).render(
        title=f"me5 · scale {scale} · seed {settings.get('seed', '?')}", scale=scale, books=books, main=main_table(out),
        shown=shown, explain=lambda names: columns[columns["column"].isin([*names])].to_html(
            index=False, border=0, na_rep=""),
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
