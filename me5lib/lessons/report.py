"""The pages of a run, which need no network: an HTML of each notebook (equations as MathML) and `index.html`.

    page(Path("runs/…/notebooks/06.ipynb"))     # → 06.html beside it
    index(out)                                  # → index.html with tables and pictures, results.json, timings.json

Design: nbconvert renders; its scripts from content networks are left out, formulas are turned to MathML when the page
is made, and widgets (which need a kernel) are left to their static twins. Cost: about a second a notebook.
"""

from __future__ import annotations

import html
import json
import re
from functools import cache
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
_WIDGET = "application/vnd.jupyter.widget-view+json"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem }
td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; margin: .4rem 0 }
.failed { color: #b00020 }
details > summary { cursor: pointer; color: #0072B2 }
"""
_SIGNS = {sign: chr(0xE000 + i) for i, sign in enumerate("{}_%&#$\\")}  # stand-ins of Unicode's private use
MOST_ROWS = 60  # of a table on the index page; a longer one is linked


def mathml(latex: str, block: bool = False) -> str:
    """MathML of a LaTeX formula; the formula as code where it cannot be turned."""
    from latex2mathml.converter import convert

    body = re.sub(r"\\(tag|label)\{[^{}]*\}", "", latex.strip())
    body = re.sub(r"\\text\w*\{((?:\\.|[^{}\\])*)\}", _shield, body)
    body = re.sub(r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}", body)  # the one common name that the converter lacks
    try:
        made = convert(body, display="block" if block else "inline")
    except Exception:  # whatever the parser trips over: the source is still readable
        made = "\\"
    if "\\" in made:
        return f"<code>{html.escape(latex)}</code>"
    for sign, stand_in in _SIGNS.items():
        made = made.replace(stand_in, html.escape(sign))
    return made


def _shield(text: re.Match[str]) -> str:
    """A piece of text in a formula with its escaped signs replaced: the converter would end it at the first brace."""
    found = text.group().replace("\\textbackslash ", _SIGNS["\\"])
    return re.sub(r"\\([{}_%&#$])", lambda sign: _SIGNS[sign.group(1)], found)


@cache
def _exporter():
    from jinja2 import pass_context
    from nbconvert.exporters.html import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return mathml(body)

        def block_math(self, body: str) -> str:
            return mathml(body, block=True)

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)

    class Offline(HTMLExporter):
        @pass_context
        def markdown2html(self, context: object, source: str) -> str:
            attachments = context.get("cell", {}).get("attachments", {})
            return MarkdownWithMath(renderer=Renderer(escape=False, attachments=attachments)).render(source)

    return Offline(raw_template=_TEMPLATE, template_name="lab", anchor_link_text=" ")


def page(notebook: Path) -> Path:
    """Write the HTML of an executed notebook beside it; returns its path."""
    import nbformat

    book = nbformat.read(notebook, as_version=4)
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        for output in cell.get("outputs", []):
            _without_scripts(output.get("data", {}))
    book.metadata["title"] = title(book)
    content, _ = _exporter().from_notebook_node(book)
    content = re.sub(r'href="([0-9]{2})_[^"/]*\.ipynb"', r'href="\1.html"', content)
    path = notebook.with_suffix(".html")
    path.write_text(content, encoding="utf8")
    return path


def _without_scripts(data: dict) -> None:
    """Leave out of one output what would need a kernel or the network: widgets, JavaScript, LaTeX."""
    if data.pop(_WIDGET, None) is not None:
        data.pop("text/html", None)
        data["text/plain"] = "(interactive: open the notebook in JupyterLab)"
    data.pop("application/javascript", None)
    if latex := data.pop("text/latex", None):
        data.setdefault("text/html", mathml("".join(latex).strip().strip("$"), block=True))


def title(book: dict) -> str:
    """The first heading of a notebook, plain and without its number."""
    lines = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown").splitlines()
    heading = next((line for line in lines if line.startswith("#")), "")
    return re.sub(r"^[# ]*(\d\d\b[ ·.:]*)?|[`*]", "", heading)


def collect(out: Path, finished: list[str]) -> dict:
    """Write results.json (every metric of the finished notebooks, sorted) and timings.json; returns the results."""
    results, timings = {}, {}
    for name in sorted(finished):
        folder = out / "lessons" / name
        results[name] = _json(folder / "metrics.json")
        timings[name] = _json(folder / "timings.json")
    for path, content in ((out / "results.json", results), (out / "timings.json", timings)):
        path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf8")
    return results


def index(out: Path) -> Path:
    """Write `index.html` of the run in `out` from its state, metrics, tables (CSV) and pictures (PNG)."""
    state = _json(out / "state.json")
    settings = state.get("settings", {})
    heading = html.escape(f"me5 · scale {settings.get('scale', '?')} · seed {settings.get('seed', '?')}")
    parts = [f"<h1>{heading}</h1>", _overview(state)]
    if (table := main_table(out)) is not None:
        note = "Mean over languages, between 0 and 1; in brackets the 95 % interval over languages."
        parts.append(f"<h2>The main table</h2><p>{note}</p>" + table.to_html(border=0, na_rep=""))
    for name, book in sorted(state.get("notebooks", {}).items()):
        parts.append(_section(out, name, book))
    text = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>'
            f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n")
    path = out / "index.html"
    path.write_text(text, encoding="utf8")
    return path


def summary(out: Path) -> str:
    """What became of each notebook and the numbers it recorded, as plain lines."""
    lines = []
    for name, book in sorted(_json(out / "state.json").get("notebooks", {}).items()):
        lines.append(f"{name}  {book['state']:9} {book['seconds']:6.0f} s  {book['title']}")
        metrics = _json(out / "lessons" / name / "metrics.json")
        lines += [f"      {book['error']}"] if book["error"] else []
        lines += [f"      {key:48} {_number(value)}" for key, value in metrics.items()]
    if (table := main_table(out)) is not None:
        lines += ["", table.to_string(na_rep="")]
    return "\n".join(lines)


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


def _overview(state: dict) -> str:
    rows = []
    for name, book in sorted(state.get("notebooks", {}).items()):
        failed = book["state"] != "finished"
        mark = f'<span class="failed">{html.escape(book["error"])}</span>' if failed else book["state"]
        link = f'<a href="#{name}">{name} · {html.escape(book["title"])}</a>'
        rows.append(f'<tr><td>{link}</td><td>{mark}</td><td class="n">{book["seconds"]:.0f} s</td></tr>')
    return ("<table><tr><th>notebook</th><th></th><th>time</th></tr>" + "".join(rows) + "</table>"
            '<p><a href="results.json">results.json</a> has every number, <a href="timings.json">timings.json</a> '
            "every time.</p>")


def _section(out: Path, name: str, book: dict) -> str:
    folder = out / "lessons" / name
    parts = [f'<h2 id="{name}">{name} · {html.escape(book["title"])}</h2>',
             f'<p><a href="notebooks/{name}.html">the executed notebook</a></p>']
    for picture in sorted(folder.glob("*.png")):
        parts.append(f'<img src="lessons/{name}/{picture.name}" alt="{html.escape(picture.stem)}">')
    for table in sorted(folder.glob("*.csv")):
        parts.append(f"<h3>{html.escape(table.stem)}</h3>" + _csv(table))
    if metrics := _json(folder / "metrics.json"):
        rows = "".join(f'<tr><td>{html.escape(key)}</td><td class="n">{_number(value)}</td></tr>'
                       for key, value in metrics.items())
        parts.append(f"<details><summary>{len(metrics)} metrics</summary><table>{rows}</table></details>")
    return "\n".join(parts)


def _csv(path: Path) -> str:
    import pandas

    frame = pandas.read_csv(path)
    if len(frame) > MOST_ROWS:
        return f'<p><a href="lessons/{path.parent.name}/{path.name}">{len(frame)} rows</a></p>'
    return frame.to_html(index=False, border=0, float_format="{:.3f}".format, na_rep="")


def _number(value: float | str) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.4g}"


def _json(path: Path) -> dict:
    return io.read_json(path, {})
