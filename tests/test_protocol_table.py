"""The protocol against an independent reading of PAPER.md §3: its committed table, and vectors of small models."""

import csv
from pathlib import Path

import mteb
import numpy as np
import pandas as pd
import pytest
import torch
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

from me5lib.evaluate import models, prompts, protocol_delta
from me5lib.evaluate.paper import COORDINATES, paper_table
from me5lib.evaluate.protocol import Protocol
from me5lib.io import Me5Error

TABLES = Path(prompts.__file__).parent / "tables"


def committed() -> list[dict[str, str]]:
    with (TABLES / "protocol.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def paper_says(kind: str, name: str) -> tuple[str, str, str]:
    """PAPER.md §3, the table of the models with prefixes: query side, document side, L2 norm."""
    rows = {
        "Retrieval": ("query: ", "passage: ", "yes"),
        "QuoraRetrieval": ("query: ", "query: ", "yes"),
        "Classification": ("query: ", "query: ", "no"),
        "Clustering": ("query: ", "query: ", "yes"),
        "STS": ("query: ", "query: ", "yes"),
        "Summarization": ("query: ", "query: ", "yes"),
        "PairClassification": ("query: ", "query: ", "yes"),
        "Reranking": ("query: ", "query: ", "yes"),
        "BitextMining": ("query: ", "query: ", "yes"),
    }
    return rows.get(name) or rows[kind]


def listed_instructions(folder: Path) -> dict[str, str]:
    """`<type>/<task>` → instruction, of instruct_prompts.csv."""
    with (folder / "instruct_prompts.csv").open(encoding="utf8", newline="") as file:
        return {f"{kind}/{row['task']}": row["instruction"]
                for row in csv.DictReader(file) for kind in row["task_type"].split(",")}


def instruct_says(kind: str, name: str, listed: dict[str, str]) -> tuple[str, str]:
    """§3 for the instruct model: `Instruct: …` on every text, but on queries alone in retrieval."""
    key = "CQADupstack*" if name.startswith("CQADupstack") else name
    prompt = "Instruct: {}\nQuery: ".format(listed.get(f"{kind}/{key}") or listed[f"{kind}/*"])
    return (prompt, "") if kind == "Retrieval" else (prompt, prompt)


def tasks_of_the_tables() -> list[tuple[str, str, str]]:
    """Table, type and mteb name of every task of Tables 3 (with CQADupstack's twelve forums), 4 and 5."""
    english = paper_table(7)[["type", "task"]].drop_duplicates()
    found = [("3", row.type, row.task) for row in english.itertuples()]
    at = next(i for i, row in enumerate(found) if row[2] == "CQADupstackRetrieval") + 1
    found[at:at] = [("3", "Retrieval", f"CQADupstack{forum}Retrieval") for forum in prompts.FORUMS]
    return [*found, ("4", "Retrieval", "MIRACLRetrieval"), ("5", "BitextMining", "BUCC"),
            ("5", "BitextMining", "Tatoeba")]


def test_the_committed_table_is_what_the_code_gives():
    said = {True: "yes", False: "no"}
    for row, (table, kind, name) in zip(committed(), tasks_of_the_tables(), strict=True):
        plain, instructed = prompts.paper_rule(kind, name), prompts.paper_instruct_rule(kind, name)
        assert row == {
            "table": table, "type": kind, "task": name, "query": plain.query, "document": plain.document,
            "instruct_query": instructed.query, "instruct_document": instructed.document,
            "title": said[plain.title] if kind == "Retrieval" else "", "norm": said[plain.normalise],
        }  # fmt: skip


def test_every_row_is_what_the_paper_says(shared):
    rows, listed = committed(), listed_instructions(shared / "reference")
    assert listed_instructions(TABLES) == listed
    for row in rows:
        kind, name = row["type"], row["task"]
        assert (row["query"], row["document"], row["norm"]) == paper_says(kind, name), name
        assert (row["instruct_query"], row["instruct_document"]) == instruct_says(kind, name, listed), name
        title = {"QuoraRetrieval": "no"}.get(name, "yes") if kind == "Retrieval" else ""
        assert row["title"] == title, name


def test_the_tasks_are_those_of_the_tables_by_mtebs_own_names():
    rows = committed()
    assert len({row["task"] for row in rows}) == len(rows) == 56 + 12 + 3
    forums = {row["task"] for row in rows if row["task"].startswith("CQADupstack")} - {"CQADupstackRetrieval"}
    found = {row["task"]: row["type"] for row in rows if row["table"] == "3" and row["task"] not in forums}
    english = mteb.get_benchmark("MTEB(eng, v1)").tasks
    assert found == {task.metadata.name: task.metadata.type for task in english}
    (cqa,) = (task for task in english if task.metadata.name == "CQADupstackRetrieval")
    assert forums == {task.metadata.name for task in cqa.metadata.tasks}
    rest = {row["task"]: (row["table"], row["type"]) for row in rows if row["table"] != "3"}
    assert rest == {"MIRACLRetrieval": ("4", "Retrieval"), "BUCC": ("5", "BitextMining"),
                    "Tatoeba": ("5", "BitextMining")}
    assert all(mteb.get_task(name).metadata.type == kind for name, (_, kind) in rest.items())


def test_where_todays_mteb_has_another_instruction():
    """CQADupstack's forums have none of their own in mteb 2.26, and SummEval's ends in a full stop."""
    rows = [row for row in committed() if row["task"] != "CQADupstackRetrieval"]  # only its forums are ever encoded
    today = {row["task"]: prompts.mteb_instruct_rule(mteb.get_task(row["task"]).metadata).query for row in rows}
    other = {row["task"]: today[row["task"]] for row in rows if today[row["task"]] != row["instruct_query"]}
    assert other.pop("SummEval").endswith("similar summaries.\nQuery: ")
    assert len(other) == 12 and {name[:11] for name in other} == {"CQADupstack"}
    assert set(other.values()) == {"Instruct: Retrieve text based on user query.\nQuery: "}
    why = protocol_delta.why("CQADupstackRetrieval", instruct=True)
    assert why.startswith("another instruction: 'Instruct: Retrieve text")


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

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs):
        batches = list(inputs)
        vectors = super().encode(batches, task_metadata=task_metadata, hf_split=hf_split, hf_subset=hf_subset,
                                 prompt_type=prompt_type, **kwargs)
        columns = {column: [value for batch in batches for value in batch[column]]
                   for column in ("text", "body", "title") if all(column in batch for batch in batches)}
        self.calls.append((prompt_type.value if prompt_type else "", columns, vectors))
        return vectors


def strings(kind: str, side: str, columns: dict, instruct: bool, listed: dict[str, str]) -> list[str]:
    """What the authors' scripts feed to the tokenizer, read from PAPER.md §3 and written out once more."""
    if kind in ("Retrieval", "Quora") and side == "document":
        titles = columns.get("title", [""] * len(columns["body"]))
        joined = [f"{title} {body}".strip() for title, body in zip(titles, columns["body"], strict=True)]
        if instruct:
            return joined
        return [f"query: {b}" for b in columns["body"]] if kind == "Quora" else [f"passage: {t}" for t in joined]
    if not instruct:
        return [f"query: {text}" for text in columns["text"]]
    official = kind.replace("Quora", "Retrieval")
    task = listed.get(f"{official}/{TASKS[kind][1]}") or listed[f"{official}/*"]
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


@pytest.fixture(scope="module")
def tokenizer():
    from me5lib.model.text import train_tokenizer

    texts = [f"This is a positive sentence {a}{b} of another body" for a in "klmnoprstu" for b in "aeiou"]
    return train_tokenizer([*texts, *(row["instruct_query"] for row in committed())], 700)


@pytest.fixture(scope="module", params=["as mE5-small", "as mE5-base"])
def folder(request, tokenizer, tmp_path_factory) -> Path:
    """A small random model: mE5-small is a BertModel that calls token 0 padding, the larger ones are XLM-R."""
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    where = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
             "initializer_range": 0.2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "as mE5-small":
            model = BertModel(BertConfig(vocab_size=len(tokenizer) + 35, pad_token_id=0, type_vocab_size=2,
                                         max_position_embeddings=512, **shape))
        else:
            model = XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, type_vocab_size=1,
                                                     max_position_embeddings=514, **shape))
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


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
    sides = {"Retrieval": {"query", "document"}, "Quora": {"query", "document"}, "Reranking": {"query", "document"}}
    assert {side for side, *_ in model.calls} == sides.get(kind, {""})
    listed = listed_instructions(TABLES)
    for side, columns, vectors in model.calls:
        expected = reference(folder, strings(kind, side, columns, instruct, listed), unit=kind != "Classification")
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_titles_and_texts_longer_than_512_tokens(folder, opened):
    """The encoder interface as mteb calls it, on a document with a title and on one that is cut."""
    from datasets import Dataset
    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    corpus = Dataset.from_dict({"id": ["1", "2", "3"], "title": ["A title", "", "long"],
                                "text": [" a body ", " bare ", "kal mel nel " * 400]})  # fmt: skip
    long = "kal mel nel " * 400
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
    from datasets import Dataset
    from mteb._create_dataloaders import create_dataloader
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType

    opened.encoder.encoder.save(tmp_path / "folder")
    where = {"device": "cpu", "revision": None}
    listed = mteb.get_model_meta("intfloat/multilingual-e5-" + ("large-instruct" if instruct else "small"))
    kind = InstructSentenceTransformerModel if instruct else SentenceTransformerEncoderWrapper
    options = {key: value for key, value in listed.loader_kwargs.items() if key != "model_kwargs"}  # fp16
    theirs = kind(str(tmp_path / "folder"), **where, **options)
    ours = Protocol(opened.encoder, opened.name, "mteb", revision="0", instruct=instruct)
    rows = {"id": ["1", "2"], "title": ["A title", ""], "text": ["a body of text", "bare"]}
    for _, name in TASKS.values():
        metadata = mteb.get_task(name).metadata
        for side in (PromptType.query, PromptType.document) if metadata.type in prompts.SIDED else (None,):
            kept = rows if side is PromptType.document else {"text": rows["text"]}
            given = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default", "prompt_type": side}
            made = [create_dataloader(Dataset.from_dict(kept), task_metadata=metadata, prompt_type=side,
                                      input_column="text") for _ in range(2)]  # fmt: skip
            expected = np.asarray(theirs.encode(made[0], show_progress_bar=False, **given))
            np.testing.assert_allclose(ours.encode(made[1], **given), expected, atol=1e-5, err_msg=f"{name} {side}")


# The difference between the protocols.


def measured(**changes) -> pd.DataFrame:
    rows = []
    for protocol, values in (("paper", (81.8, 60.0, 87.0, 50.0)), ("mteb", (74.9, 64.0, 88.0, 51.0))):
        for task, value in zip(("Banking77Classification", "Tatoeba", "QuoraRetrieval", "SciDocsRR"), values,
                               strict=True):
            for subset in ("a", "b"):
                rows.append(("intfloat/multilingual-e5-small", "fd1525a9", protocol, "fp32", "full", task, "d0",
                             "2.26.0", "test", subset, "main_score", value + (subset == "b")))
    return pd.DataFrame(rows, columns=list(COORDINATES)).assign(**changes)


def test_protocol_delta_says_what_moved_and_why():
    table = protocol_delta.protocol_delta(measured()).set_index("task")
    assert table.loc["Banking77Classification", ["subsets", "paper", "mteb"]].tolist() == [2, 82.3, 75.4]
    assert table["delta"].tolist() == pytest.approx([-6.9, 4.0, 1.0, 1.0])
    assert table["why"].tolist() == ["prefix dropped; normalised before the classifier", "prefix dropped",
                                     "Quora's documents as passages", "documents as passages"]
    told = {name: protocol_delta.why(name, instruct=True)
            for name in ("Banking77Classification", "SciDocsRR", "SciFact")}
    assert told == {"Banking77Classification": "normalised before the classifier",
                    "SciDocsRR": "documents without instruction", "SciFact": protocol_delta.NOTHING}


def test_protocol_delta_compares_common_subsets_of_one_model_only():
    frame = measured()
    fewer = frame.drop(frame[(frame["protocol"] == "mteb") & (frame["task"] == "Tatoeba")].index[:1])
    table = protocol_delta.protocol_delta(fewer).set_index("task")
    assert table.loc["Tatoeba", ["subsets", "paper"]].tolist() == [1, 61.0]
    other = pd.concat([frame, measured(revision="0123abcd")])
    with pytest.raises(Me5Error, match="these results mix revision "):
        protocol_delta.protocol_delta(other)
    for column in ("model", "revision", "dtype", "weights", "mteb_version"):
        apart = frame.assign(**{column: frame[column].where(frame["protocol"] == "paper", "another")})
        with pytest.raises(Me5Error, match=f"these results mix {column} .*another"):
            protocol_delta.protocol_delta(apart)
    late = frame.copy()
    late.loc[late["protocol"] == "mteb", "dataset_revision"] = "d1"
    with pytest.raises(Me5Error, match="measured on two revisions of its data"):
        protocol_delta.protocol_delta(late)
    with pytest.raises(Me5Error, match="no main_score measured under the protocol mteb"):
        protocol_delta.protocol_delta(frame[frame["protocol"] == "paper"])
    with pytest.raises(Me5Error, match="nothing measured of x: there is intfloat/multilingual-e5-small"):
        protocol_delta.protocol_delta(frame, "x")
    with pytest.raises(Me5Error, match="lacks the columns dtype"):
        protocol_delta.protocol_delta(frame.drop(columns="dtype"))
    with pytest.raises(Me5Error, match="mteb has no task Nothing"):
        protocol_delta.why("Nothing")


def test_changes_of_metrics_are_true_of_the_mteb_in_use():
    from mteb.abstasks import AbsTaskRetrieval

    table = protocol_delta.metric_changes()
    assert set(table["task_type"]) == {row["type"] for row in committed()} and table.notna().all().all()
    scores = {name: mteb.get_task(name).metadata.main_score for name in (
        "TwitterURLCorpus", "SciDocsRR", "MindSmallReranking", "Tatoeba", "SummEval", "STS17", "ArxivClusteringP2P",
        "Banking77Classification", "SciFact")}
    assert scores == {
        "TwitterURLCorpus": "max_ap", "SciDocsRR": "map_at_1000", "Tatoeba": "f1", "SummEval": "cosine_spearman",
        "MindSmallReranking": "max_over_subqueries_map_at_1000", "STS17": "cosine_spearman",
        "ArxivClusteringP2P": "v_measure", "Banking77Classification": "accuracy", "SciFact": "ndcg_at_10"}
    assert mteb.get_task("ToxicConversationsClassification").samples_per_label == 16
    assert mteb.get_task("ArguAna").ignore_identical_ids and mteb.get_task("QuoraRetrieval").ignore_identical_ids
    assert not AbsTaskRetrieval.ignore_identical_ids and not mteb.get_task("MIRACLRetrieval").ignore_identical_ids
    assert mteb.get_task("SummEval").evaluator.__name__ == "DeprecatedSummarizationEvaluator"
