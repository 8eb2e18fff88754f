"""The protocol: its committed table, vectors of small models the plain way and by mteb's own wrappers, what is kept."""

import csv
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset
from fixtures_tables import me5_like
from mteb._create_dataloaders import create_dataloader
from mteb.mocks.mock_tasks import (
    bitext_mining,
    classification,
    clustering,
    pair_classification,
    reranking,
    retrieval,
    sts,
    summarization,
)
from mteb.types import PromptType

from me5lib import config
from me5lib.evaluate import benchmarks, models, paper
from me5lib.evaluate import protocol as rules
from me5lib.evaluate.protocol import Protocol, encoder_fingerprint, paper_rule, rule_of
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer

Q, P = "query: ", "passage: "
STS = {"task_metadata": sts.MockSTSTask().metadata, "hf_split": "test", "hf_subset": "default"}


def committed() -> list[dict[str, str]]:
    with (Path(rules.__file__).parent / "tables" / "protocol.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_committed_table_is_what_the_code_gives():
    said = {True: "yes", False: "no"}
    for row in committed():
        kind, name = row["type"], row["task"]
        plain, instructed = (paper_rule(kind, name, instruct) for instruct in (False, True))
        assert row == {
            "table": row["table"], "type": kind, "task": name, "query": plain.query, "document": plain.document,
            "instruct_query": instructed.query, "instruct_document": instructed.document,
            "title": said[plain.title] if kind == "Retrieval" else "", "norm": said[plain.normalise],
        }  # fmt: skip
    assert {row["document"] for row in committed() if row["task"] == "QuoraRetrieval"} == {Q}
    assert {row["type"] for row in committed() if row["norm"] == "no"} == {"Classification"}


def test_its_tasks_are_those_of_the_tables_by_mtebs_own_names():
    tasks = {(str(number), part.metadata.name, part.metadata.type) for number in paper.TABLES
             for task in benchmarks.table_tasks(number) for part in (task, *benchmarks.parts_of(task))}
    assert sorted(tasks) == sorted((row["table"], row["task"], row["type"]) for row in committed())


def test_rules_of_types_that_mteb_hands_over_as_retrieval():
    for kind in ("Reranking", "InstructionReranking", "BitextMining", "Summarization", "PairClassification"):
        assert paper_rule(kind, "any") == (Q, Q, True, True)
    assert paper_rule("Retrieval", "QuoraRetrieval-NL").title is False
    assert paper_rule("Retrieval", "QuoraRetrievalHardNegatives").document == Q
    scifact = mteb.get_task("SciFact").metadata
    assert rule_of("paper", scifact) == rule_of("mteb", scifact) == (Q, P, True, True)
    assert not paper_rule("MultilabelClassification", "any").normalise


# Vectors: real mteb tasks, small random models, and plain transformers with the pooling written out.

TASKS = {
    "Classification": (classification.MockClassificationTask, "Banking77Classification"),
    "Clustering": (clustering.MockClusteringTask, "TwentyNewsgroupsClustering"),
    "PairClassification": (pair_classification.MockPairClassificationTask, "TwitterURLCorpus"),
    "Reranking": (reranking.MockRerankingTask, "AskUbuntuDupQuestions"),
    "Retrieval": (retrieval.MockRetrievalTask, "SciFact"),
    "Quora": (retrieval.MockRetrievalTask, "QuoraRetrieval"),
    "STS": (sts.MockSTSTask, "STS12"),
    "Summarization": (summarization.MockSummarizationTask, "SummEval"),
    "BitextMining": (bitext_mining.MockBitextMiningTask, "Tatoeba"),
}


class Watched(Protocol):
    """Remembers what mteb handed over and what it got back."""

    calls: list

    def encode(self, inputs, *, prompt_type=None, **about):
        batches = list(inputs)
        vectors = super().encode(batches, prompt_type=prompt_type, **about)
        columns = {column: [value for batch in batches for value in batch[column]]
                   for column in ("text", "body", "title") if all(column in batch for batch in batches)}
        self.calls.append((prompt_type.value if prompt_type else "", columns, vectors))
        return vectors


def strings(kind: str, side: str, columns: dict, instruct: bool) -> list[str]:
    """What the authors' scripts feed to the tokenizer, read from PAPER.md §3 and written out once more."""
    if kind in ("Retrieval", "Quora") and side == "document":
        titles = columns.get("title", [""] * len(columns["body"]))
        joined = [f"{title} {body}".strip() for title, body in zip(titles, columns["body"], strict=True)]
        if instruct:
            return joined
        return [f"query: {b}" for b in columns["body"]] if kind == "Quora" else [f"passage: {t}" for t in joined]
    if not instruct:
        return [f"query: {text}" for text in columns["text"]]
    listed = {(kind, row.task): row.instruction for row in paper.load_csv("instruct_prompts").itertuples()
              for kind in row.task_type.split(",")}
    official = kind.replace("Quora", "Retrieval")
    task = listed.get((official, TASKS[kind][1])) or listed[official, "*"]
    return [f"Instruct: {task}\nQuery: {text}" for text in columns["text"]]


def reference(folder: Path, texts: list[str], unit: bool) -> np.ndarray:
    """transformers and a mean over the non-padding tokens, 512 at most: nothing of this project."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(texts, max_length=512, padding=True, truncation=True, return_tensors="pt")
    mask = batch["attention_mask"]
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    pooled = hidden.masked_fill(~mask[..., None].bool(), 0.0).sum(1) / mask.sum(1)[..., None]
    return (torch.nn.functional.normalize(pooled, dim=-1) if unit else pooled).numpy()


def letters(where: Path, xlm: bool = False) -> Path:
    """A small random model whose vocabulary knows the texts of mteb's mock tasks."""
    texts = [f"This is a positive sentence {a}{b} of another body" for a in "klmnoprstu" for b in "aeiou"]
    return me5_like(where, train_tokenizer([*texts, *(row["instruct_query"] for row in committed())], 700), xlm=xlm)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return letters(tmp_path_factory.mktemp("as-mE5-small"))


@pytest.fixture(scope="module")
def opened(folder):
    return models.open_model(str(folder), device="cpu")


@pytest.mark.parametrize("instruct", [False, True], ids=["prefixes", "instructions"])
@pytest.mark.parametrize("kind", TASKS)
def test_vectors_are_those_of_the_plain_way(kind, instruct, folder, opened):
    make, name = TASKS[kind]
    task = make()
    task.metadata = task.metadata.model_copy(update={"name": name})
    model = Watched(opened.encoder, opened.name, revision=opened.revision, instruct=instruct)
    model.calls = []
    mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    assert {side for side, *_ in model.calls} == (
        {"query", "document"} if kind in ("Retrieval", "Quora", "Reranking") else {""})
    for side, columns, vectors in model.calls:
        expected = reference(folder, strings(kind, side, columns, instruct), unit=kind != "Classification")
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_titles_and_texts_longer_than_512_tokens(tmp_path):
    """The encoder interface as mteb calls it, on a document with a title and on one that is cut; of an XLM-R."""
    folder, long = letters(tmp_path, xlm=True), "kal mel nel " * 400
    opened = models.open_model(str(folder), device="cpu")
    corpus = Dataset.from_dict({"id": ["1", "2", "3"], "title": ["A title", "", "long"],
                                "text": [" a body ", " bare ", long]})  # fmt: skip
    for name, texts in (("SciFact", ["passage: A title  a body", "passage: bare", f"passage: long {long}"]),
                        ("QuoraRetrieval", ["query:  a body ", "query:  bare ", f"query: {long}"])):
        metadata = mteb.get_task(name).metadata
        loader = create_dataloader(corpus, task_metadata=metadata, prompt_type=PromptType.document)
        found = Protocol(opened.encoder, opened.name, revision="0").encode(
            loader, task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=PromptType.document)
        np.testing.assert_allclose(found, reference(folder, texts, unit=True), atol=1e-5)


@pytest.mark.parametrize("instruct", [False, True], ids=["prefixes", "instructions"])
def test_mtebs_protocol_is_what_mtebs_own_wrappers_give(instruct, opened, tmp_path):
    """On the same loaders: SentenceTransformerEncoderWrapper, InstructSentenceTransformerModel, as mteb's list has."""
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

    opened.encoder.encoder.save(tmp_path / "folder")
    listed = mteb.get_model_meta("intfloat/multilingual-e5-" + ("large-instruct" if instruct else "small"))
    kind = InstructSentenceTransformerModel if instruct else SentenceTransformerEncoderWrapper
    options = {key: value for key, value in listed.loader_kwargs.items() if key != "model_kwargs"}  # fp16
    theirs = kind(str(tmp_path / "folder"), device="cpu", revision=None, **options)
    ours = Protocol(opened.encoder, opened.name, "mteb", revision="0", instruct=instruct)
    rows = {"id": ["1", "2"], "title": ["A title", ""], "text": ["a body of text", "bare"]}
    for _, name in TASKS.values():
        metadata = mteb.get_task(name).metadata
        for side in (PromptType.query, PromptType.document) if metadata.type in rules.SIDED else (None,):
            kept = rows if side is PromptType.document else {"text": rows["text"]}
            about = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default", "prompt_type": side}
            made = [create_dataloader(Dataset.from_dict(kept), task_metadata=metadata, prompt_type=side,
                                      input_column="text") for _ in range(2)]  # fmt: skip
            expected = np.asarray(theirs.encode(made[0], show_progress_bar=False, **about))
            np.testing.assert_allclose(ours.encode(made[1], **about), expected, atol=1e-5, err_msg=f"{name} {side}")


# What is encoded, how often, and under which name.


class Recorder:
    """Remembers every list with its prefix; vectors are letter counts, of length 3 when not normalised."""

    def __init__(self) -> None:
        self.lists: list[tuple[str, list[str]]] = []

    def encode(self, texts, prefix="", *, normalise=True):
        self.lists.append((prefix, list(texts)))
        vectors = np.array([[t.count(c) + 1.0 for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * (1 if normalise else 3)


def test_every_text_is_encoded_once_per_task_and_order_is_kept():
    recorder = Recorder()
    model = Protocol(recorder, "recorder", revision="0")
    first = model.encode([{"text": ["b", "a", "b"]}, {"text": ["c"]}], **STS)
    again = model.encode([{"text": ["c", "a"]}], **STS)
    other = STS | {"task_metadata": clustering.MockClusteringTask().metadata}
    model.encode([{"text": ["a"]}], **other)
    assert recorder.lists == [(Q, ["b", "a", "c"]), (Q, ["a"])]
    np.testing.assert_array_equal(first, Recorder().encode(["b", "a", "b", "c"]))
    np.testing.assert_array_equal(again, first[[3, 1]])


def test_what_is_kept_is_bounded_and_documents_are_handed_on_as_they_come(monkeypatch):
    monkeypatch.setattr(rules, "KEPT", 10)
    model = Protocol(Recorder(), "recorder", revision="0")
    for start in range(0, 100, 5):
        texts = ["x" * n for n in range(start, start + 5)]
        np.testing.assert_array_equal(model.encode([{"text": texts}], **STS), Recorder().encode(texts))
        assert len(model._known) <= 15
    documents = {**STS, "task_metadata": retrieval.MockRetrievalTask().metadata, "prompt_type": PromptType.document}
    recorder = Recorder()
    model = Protocol(recorder, "used", revision="0")
    for texts in (["b", "a"], ["a", "b", "a"]):
        model.encode([{"text": texts, "body": texts}], **documents)
    assert recorder.lists == [(P, ["b", "a"]), (P, ["a", "b", "a"])]


def test_another_model_keeps_its_own_prompts_and_a_task_without_instruction_is_refused():
    recorder = Recorder()
    recorder.own_prompts = {}
    for protocol in ("paper", "mteb"):
        Protocol(recorder, "r", protocol, revision="0").encode([{"text": ["a"]}], **STS)
    recorder.own_prompts = {"query": "ask: ", "STS": "same: "}
    model = Protocol(recorder, "r", revision="0")
    model.encode([{"text": ["a"]}], **STS)
    assert [prefix for prefix, _ in recorder.lists] == ["", "", "same: "]
    assert model.rule(retrieval.MockRetrievalTask().metadata)[:2] == ("ask: ", "")
    with pytest.raises(Me5Error, match=r"no instruction for MockClassificationTask \(Classification\): leave it out"):
        Protocol(Recorder(), "r", revision="0", instruct=True).rule(classification.MockClassificationTask().metadata)


def test_names_and_revisions_of_results(tmp_path):
    words = [[f"{a}{b} {b}{a}" for a in letters for b in "aeiou"] * 20 for letters in ("klmnoprstu", "bcdfghj")]
    one, two = (train_tokenizer(texts, 330, tmp_path / str(i)) for i, texts in enumerate(words))
    shape = config.load("smoke").model
    encoder = Encoder.new(shape, one, 0)
    first = encoder_fingerprint(encoder)
    encoder.encode(["ka ko"])  # switches truncation off, which changes nothing
    assert first == encoder_fingerprint(encoder)
    others = [Encoder.new(shape, one, 1), Encoder.new(shape, two, 0)]
    assert len({first, *map(encoder_fingerprint, others)}) == 3
    ways = (("paper", {}), ("mteb", {}), ("paper", {"max_tokens": 8}))  # never share results
    assert len({Protocol(encoder, "x", name, **more).mteb_model_meta.revision for name, more in ways}) == 3
    for protocol in ("paper", "mteb"):
        meta = Protocol(Recorder(), "intfloat/multilingual-e5-small", protocol, revision="fd1525a9").mteb_model_meta
        assert (meta.name, meta.revision) == ("intfloat/multilingual-e5-small", "fd1525a9")
        assert meta.embed_dim == 384  # as mteb's list of models has it
    for name in ("stage 2", "me5/stage-2"):
        assert Protocol(Recorder(), name, revision="0").mteb_model_meta.name == "me5/stage-2"
    with pytest.raises(Me5Error, match="unknown protocol 'papr': choose one of paper, mteb"):
        Protocol(Recorder(), "x", "papr", revision="0")
