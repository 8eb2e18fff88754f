"""A model card in the hub's format: metadata in YAML, then what a reader needs before using the model.

    text = write(About("my-e5", encoder.width, ...))      # the README.md of an exported folder

Languages and training data come from the data cards that the caller hands over, results from measured rows, each with
its protocol, precision and the revision of its data set; nothing is filled in that was not given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from me5lib.model.text import QUERY

if TYPE_CHECKING:
    import pandas as pd
    from huggingface_hub import EvalResult

UNKNOWN = "unknown"  # the hub's word for a licence that nobody stated
COLUMNS = ("task", "dataset_revision", "mteb_version", "protocol", "dtype", "split", "subset", "metric", "value")
ISO = re.compile(r"[a-z]{2,3}")  # what the hub takes for a language: ISO 639-1, -2 or -3


class Source(NamedTuple):
    """What a model was trained on, as its data card says."""

    name: str
    title: str = ""
    licence: str = ""
    homepage: str = ""
    languages: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()  # data sets of the hub


class About(NamedTuple):
    """What a card says of a model."""

    name: str
    width: int  # dimensions of a vector
    tokens: int  # of the longest text
    prompts: dict[str, str]
    license: str = UNKNOWN  # an identifier of the hub, as mit
    base_model: str = ""  # a hub id; "": random weights, or not known
    start: str = ""  # what it was trained from where that is no hub id, as "random weights"
    sources: tuple[Source, ...] = ()
    results: tuple[EvalResult, ...] = ()
    onnx: bool = False
    notice: str = ""  # what the licence of the weights asks to be passed on


def write(about: About) -> str:
    """The whole card: metadata between two lines of dashes, then Markdown."""
    parts = [_opening(about), _usage(about), _training(about), _scores(about), _LIMITS, about.notice]
    return f"---\n{metadata(about).strip()}\n---\n\n" + "\n\n".join(part.strip() for part in parts if part) + "\n"


def metadata(about: About) -> str:
    """The card's YAML, by `huggingface_hub`'s own `ModelCardData`, results as `model-index`."""
    from huggingface_hub import ModelCardData

    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "multilingual-e5"]
    datasets = dict.fromkeys(repository for source in about.sources for repository in source.repositories)
    return ModelCardData(
        model_name=about.name, language=languages(about.sources) or None, license=about.license,
        library_name="sentence-transformers", pipeline_tag="sentence-similarity",
        tags=[*tags, *(["onnx"] if about.onnx else [])], base_model=about.base_model or None,
        datasets=list(datasets) or None, eval_results=list(about.results) or None,
    ).to_yaml()  # fmt: skip


def languages(sources: Sequence[Source]) -> list[str]:
    """ISO 639 codes of all sources, sorted, scripts and regions left out; `multilingual` first where there are more."""
    codes = (code.partition("-")[0].lower() for source in sources for code in source.languages)
    found = sorted({code for code in codes if ISO.fullmatch(code)})
    return ["multilingual", *found] if len(found) > 1 else found


def results(measured: pd.DataFrame, described: Callable[[str], tuple[str, str]]) -> tuple[EvalResult, ...]:
    """One entry of a `model-index` for every measured row (columns: `COLUMNS`; `value` in per cent), in their order.

    `described(task)` says mteb's type of a task and the hub id of its data set. Protocol, precision and mteb's version
    go into the metric's arguments and its name, so that two ways to evaluate stay two results. Raises ValueError where
    a column is missing or a value is no number.
    """
    from huggingface_hub import EvalResult

    if missing := [name for name in COLUMNS if name not in measured.columns]:
        raise ValueError(f"measured lacks the columns {missing}")
    if measured["value"].isna().any():
        raise ValueError("measured has rows without a value")
    found = []
    for row in measured.to_dict("records"):
        kind, dataset = described(row["task"])
        subset = "" if row["subset"] in ("", "default") else f" ({row['subset']})"
        way = {"protocol": row["protocol"], "dtype": row["dtype"], "mteb": str(row["mteb_version"])}
        revision = row["dataset_revision"]
        found.append(EvalResult(
            task_type=kind, dataset_type=dataset, dataset_name=f"MTEB {row['task']}{subset}",
            dataset_config=row["subset"] or None, dataset_split=row["split"],
            dataset_revision=revision if isinstance(revision, str) and revision else None, metric_type=row["metric"],
            metric_name=f"{row['metric']}, {row['protocol']} protocol, {row['dtype']}", metric_args=way,
            metric_value=round(float(row["value"]), 4),
        ))  # fmt: skip
    return tuple(found)


def _opening(about: About) -> str:
    start = f"`{about.base_model}`" if about.base_model else about.start or "a backbone that is not stated"
    count = len([code for code in languages(about.sources) if code != "multilingual"])
    spoken = f" Its training data has {count} languages." if count else ""
    return (
        f"# {about.name}\n\nA text embedding model by the recipe of Multilingual E5 "
        f"([arXiv 2402.05672](https://arxiv.org/abs/2402.05672)), from {start}: average pooling over all tokens, unit "
        f"length, {about.width} dimensions, texts of up to {about.tokens} tokens.{spoken} Written by `me5 export`."
    )


def _usage(about: About) -> str:
    """How to encode, with each library."""
    query, document = about.prompts["query"], about.prompts["document"]
    sides = f"`{_shown(query)}` before a query and " + (f"`{_shown(document)}` before a document" if document else
                                                        "nothing before a document")  # fmt: skip
    told = (
        "The instruction in it says what to look for: put your own in its place (`prompt=`), and put it on every text "
        "of tasks that compare like with like (similarity, clustering, translations)."
        if document == "" else
        f"Tasks that compare like with like (similarity, clustering, translations) take `{QUERY}` on both sides."
    )  # fmt: skip
    snippet = _SNIPPET.format(name=about.name) + (_ONNX.format(name=about.name, query=query) if about.onnx else "")
    return f"## Usage\n\nThe model was trained with {sides}, and is worse without. {told}\n\n{snippet}"


def _shown(prompt: str) -> str:
    return prompt.replace("\n", "\\n")


def _training(about: About) -> str:
    if not about.sources:
        return "## Training data\n\nNot stated."
    rows = [
        f"| {_cell(source.title or source.name)} | {len(source.languages) or ''} | {_cell(source.licence)} "
        f"| {_at(source)} |"
        for source in about.sources
    ]
    head = "| source | languages | licence, as the source states it | where |\n|---|---|---|---|"
    return "## Training data\n\nFrom the data cards of me5.\n\n" + "\n".join([head, *rows])


def _at(source: Source) -> str:
    links = [f"[{name}](https://huggingface.co/datasets/{name})" for name in source.repositories]
    return ", ".join(links or ([f"[home page]({source.homepage})"] if source.homepage else []))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _scores(about: About) -> str:
    """Means over the subsets of each task; every single value is in the metadata."""
    if not about.results:
        return "## Results\n\nNone were measured for this card."
    groups: dict[tuple[str, str], list[float]] = {}
    for result in about.results:
        task = result.dataset_name.removeprefix("MTEB ").partition(" (")[0]
        groups.setdefault((task, f"{result.dataset_split}: {result.metric_name}"), []).append(result.metric_value)
    rows = [f"| {task} | {metric} | {len(values)} | {sum(values) / len(values):.2f} |"
            for (task, metric), values in groups.items()]
    head = "| task | metric | subsets | mean |\n|---|---|---|---|"
    told = "Measured with mteb, in per cent; every subset's value, with its data set's revision, is in the metadata."
    return f"## Results\n\n{told}\n\n" + "\n".join([head, *rows])


_SNIPPET = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
queries = model.encode_query(["How do I pay?"])  # adds the prompt
documents = model.encode_document(["Payment is by card or invoice.", "Die Bibliothek ist geschlossen."])
print(model.similarity(queries, documents))
```
"""
_ONNX = """
Without torch, from `onnx/model.onnx` (pooling and norm are in the graph; in a folder of your own):

```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
session = onnxruntime.InferenceSession("{name}/onnx/model.onnx")
batch = tokenizer([{query!r} + "How do I pay?"], padding=True, truncation=True, return_tensors="np")
given = {{name: batch[name].astype("int64") for name in ("input_ids", "attention_mask")}}
(vectors,) = session.run(["sentence_embedding"], given)
```
"""
_LIMITS = """## Limits

Longer texts are cut. Cosines of unrelated texts are high (trained at a low temperature): compare them with each other,
not with a threshold from elsewhere. Languages that the training data lacks are not to be relied on.
"""
