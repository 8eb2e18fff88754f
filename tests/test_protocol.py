"""The protocol's rules, seen by an encoder that records what the real mteb hands it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.mocks.mock_tasks import classification as mock_classification
from mteb.mocks.mock_tasks import clustering as mock_clustering
from mteb.mocks.mock_tasks import reranking, retrieval
from mteb.mocks.mock_tasks import sts as mock_sts

from me5lib import config
from me5lib.evaluate.protocol import Protocol, fingerprint, mteb_rule, paper_rule
from me5lib.io import Me5Error

Q, P = "query: ", "passage: "


class Recorder:
    """Remembers every text with its prefix and norm; vectors are letter counts, of length 3 when not normalised."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bool]] = []

    def encode(self, texts, prefix="", *, normalise=True):
        self.seen += [(prefix, text, normalise) for text in texts]
        vectors = np.array([[t.count(c) + 1.0 for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * (1 if normalise else 3)


def run(task, protocol: str = "paper") -> Recorder:
    """The recorder after the real mteb evaluated it on `task`."""
    recorder = Recorder()
    mteb.evaluate(Protocol(recorder, "recorder", protocol, revision="0"), task, cache=None, show_progress_bar=False)
    return recorder


def quora() -> mteb.AbsTask:
    """A retrieval task that calls itself QuoraRetrieval and, unlike the real one, has titles."""
    task = retrieval.MockRetrievalTask()
    task.metadata = task.metadata.model_copy(update={"name": "QuoraRetrieval"})
    task.load_data()
    for split in task.dataset["default"].values():
        corpus = split["corpus"]
        titles = ["a title"] * len(corpus)
        split["corpus"] = Dataset.from_dict({"id": corpus["id"], "text": corpus["text"], "title": titles})
    return task


@pytest.mark.parametrize(("make", "query", "document", "norm"), [
    (mock_sts.MockSTSTask, {Q}, None, True),
    (mock_clustering.MockClusteringTask, {Q}, None, True),
    (mock_classification.MockClassificationTask, {Q}, None, False),
    (reranking.MockRerankingTask, {Q}, {Q}, True),
    (retrieval.MockRetrievalTask, {Q}, {P}, True),
    (quora, {Q}, {Q}, True),
])  # fmt: skip
def test_prefix_and_norm_by_type_and_name(make, query, document, norm):
    recorder = run(make())
    assert {prefix for prefix, *_ in recorder.seen} == query | (document or set())
    assert {normalise for *_, normalise in recorder.seen} == {norm}


def test_retrieval_documents_are_title_and_text_and_quoras_are_not():
    plain = run(with_titles(retrieval.MockRetrievalTask()))
    documents = {text for prefix, text, _ in plain.seen if prefix == P}
    assert documents == {"the title This is a positive sentence", "the title of another body"}
    renamed = with_titles(retrieval.MockRetrievalTask())
    renamed.metadata = renamed.metadata.model_copy(update={"name": "QuoraRetrieval"})
    texts = {t for _, t, _ in run(renamed).seen}
    assert {"This is a positive sentence", "of another body"} <= texts and not any("the title" in t for t in texts)


def with_titles(task):
    """The task with one query and two titled documents, in every subset and split."""
    task.load_data()
    for splits in task.dataset.values():
        for split in splits.values():
            split["queries"] = Dataset.from_dict({"id": ["q"], "text": ["a question"]})
            split["corpus"] = Dataset.from_dict({"id": ["d1", "d2"], "title": ["the title", "the title"],
                                                 "text": ["This is a positive sentence", "of another body"]})
            split["relevant_docs"], split["top_ranked"] = {"q": {"d1": 1}}, None
    return task


def test_mtebs_own_protocol_differs_where_the_paper_says_so():
    assert {p for p, *_ in run(mock_sts.MockSTSTask(), "mteb").seen} == {""}
    classified = run(mock_classification.MockClassificationTask(), "mteb").seen
    assert {(p, n) for p, _, n in classified} == {("", True)}
    assert {p for p, *_ in run(reranking.MockRerankingTask(), "mteb").seen} == {Q, P}
    assert {p for p, *_ in run(quora(), "mteb").seen} == {Q, P}


def test_rules_of_types_that_mteb_hands_over_as_retrieval():
    for kind in ("Reranking", "InstructionReranking", "BitextMining", "Summarization", "PairClassification"):
        assert paper_rule(kind, "any") == (Q, Q, True, True)
    assert paper_rule("Retrieval", "QuoraRetrieval-NL").title is False
    assert paper_rule("Retrieval", "QuoraRetrievalHardNegatives").document == Q
    assert paper_rule("Retrieval", "SciFact") == mteb_rule("Retrieval", "SciFact") == (Q, P, True, True)
    assert not paper_rule("MultilabelClassification", "any").normalise


def test_every_text_is_encoded_once_and_order_is_kept():
    recorder = Recorder()
    model = Protocol(recorder, "recorder", revision="0")
    metadata = mock_sts.MockSTSTask().metadata
    given = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
    first = model.encode([{"text": ["b", "a", "b"]}, {"text": ["c"]}], **given)
    again = model.encode([{"text": ["c", "a"]}], **given)
    assert [text for _, text, _ in recorder.seen] == ["b", "a", "c"]
    np.testing.assert_array_equal(first, Recorder().encode(["b", "a", "b", "c"]))
    np.testing.assert_array_equal(again, first[[3, 1]])


def test_what_is_kept_is_bounded():
    recorder = Recorder()
    model = Protocol(recorder, "recorder", revision="0", keep=26 * 4 * 10)
    given = {"task_metadata": mock_sts.MockSTSTask().metadata, "hf_split": "test", "hf_subset": "default"}
    for start in range(0, 100, 5):
        texts = ["x" * n for n in range(start, start + 5)]
        np.testing.assert_array_equal(model.encode([{"text": texts}], **given), Recorder().encode(texts))
        assert len(model._known) <= 15


def test_the_two_protocols_never_share_results():
    encoder = small_encoder()
    names = [Protocol(encoder, "x", protocol, **options).mteb_model_meta.revision
             for protocol, options in (("paper", {}), ("mteb", {}), ("paper", {"max_tokens": 8}))]
    assert len(set(names)) == 3


def test_a_given_name_and_revision_are_the_models_own():
    for protocol in ("paper", "mteb"):
        meta = Protocol(Recorder(), "intfloat/multilingual-e5-small", protocol, revision="fd1525a9").mteb_model_meta
        assert (meta.name, meta.revision) == ("intfloat/multilingual-e5-small", "fd1525a9")
        assert meta.embed_dim == 384  # as mteb's list of models has it
    assert Protocol(Recorder(), "stage 2", revision="0").mteb_model_meta.name == "me5/stage-2"
    assert Protocol(Recorder(), "me5/stage2", revision="0").mteb_model_meta.name == "me5/stage2"


def small_encoder():
    from me5lib.model.encoder import Encoder
    from me5lib.model.text import train_tokenizer

    words = [f"{a}{b} {b}{a}" for a in "klmnoprstu" for b in "aeiou"] * 20
    return Encoder.new(config.load("smoke").model, train_tokenizer(words, 330), 0)


class Lists(Recorder):
    """A recorder that also remembers which lists it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[list[str]] = []

    def encode(self, texts, prefix="", *, normalise=True):
        self.lists.append(list(texts))
        return super().encode(texts, prefix, normalise=normalise)


def test_documents_are_handed_on_as_they_come_in_every_run():
    task = with_titles(retrieval.MockRetrievalTask())
    given = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default",
             "prompt_type": mteb.types.PromptType.document}
    fresh, used = Lists(), Lists()
    seen_before = Protocol(used, "used", revision="0")
    seen_before.encode([{"text": ["b", "a"], "body": ["b", "a"]}], **given)
    for model in (Protocol(fresh, "fresh", revision="0"), seen_before):
        model.encode([{"text": ["a", "b", "a"], "body": ["a", "b", "a"]}], **given)
    assert fresh.lists == [["a", "b", "a"]] == used.lists[1:]


def test_what_is_kept_is_of_one_task():
    recorder = Lists()
    model = Protocol(recorder, "recorder", revision="0")
    for task in (mock_sts.MockSTSTask(), mock_clustering.MockClusteringTask()):
        for _ in range(2):
            model.encode([{"text": ["a"]}], task_metadata=task.metadata, hf_split="test", hf_subset="default")
    assert recorder.lists == [["a"], ["a"]]


def renamed(task, name: str):
    """The task under another name, which is what the rules go by."""
    task.metadata = task.metadata.model_copy(update={"name": name})
    return task


def instructed(task, protocol: str = "paper") -> set[tuple[str, bool]]:
    """Strings put before texts, with the norm, of a model that reads instructions."""
    recorder = Recorder()
    model = Protocol(recorder, "recorder", protocol, revision="0", instruct=True)
    mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    return {(prefix, normalise) for prefix, _, normalise in recorder.seen}


BANKING = "Instruct: Given a online banking query, find the corresponding intents\nQuery: "
UBUNTU = "Instruct: Retrieve duplicate questions from AskUbuntu forum\nQuery: "
CLAIM = "Instruct: Given a scientific claim, retrieve documents that support or refute the claim\nQuery: "


def test_instructions_of_the_paper_and_of_todays_mteb():
    banking = renamed(mock_classification.MockClassificationTask(), "Banking77Classification")
    assert instructed(banking) == {(BANKING, False)}
    ubuntu = renamed(reranking.MockRerankingTask(), "AskUbuntuDupQuestions")
    assert instructed(ubuntu) == {(UBUNTU, True)}
    assert instructed(renamed(retrieval.MockRetrievalTask(), "SciFact")) == {(CLAIM, True), ("", True)}
    own = reranking.MockRerankingTask.metadata.prompt or reranking.MockRerankingTask.abstask_prompt
    assert instructed(reranking.MockRerankingTask(), "mteb") == {(f"Instruct: {own}\nQuery: ", True), ("", True)}
    found = instructed(mock_classification.MockClassificationTask(), "mteb")
    assert len(found) == 1 and all(p.startswith("Instruct: ") and norm for p, norm in found)


def test_mtebs_instructions_are_those_of_its_own_wrapper():
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.types import PromptType

    theirs = InstructSentenceTransformerModel.__new__(InstructSentenceTransformerModel)
    theirs.instruction_template = "Instruct: {instruction}\nQuery: "
    for name in ("Banking77Classification", "SciFact", "SciDocsRR", "STS17", "SummEval", "BUCC", "QuoraRetrieval",
                 "TwitterURLCorpus", "TwentyNewsgroupsClustering", "MIRACLRetrieval"):  # fmt: skip
        metadata = mteb.get_task(name).metadata
        side = PromptType.query if metadata.type in ("Retrieval", "Reranking") else None
        ours = Protocol(Recorder(), "x", "mteb", revision="0", instruct=True).rule(metadata)
        assert ours.query == theirs.get_task_instruction(metadata, side), name
        assert ours.document == ("" if side else ours.query)


def test_a_task_without_an_instruction_is_refused_in_one_line():
    with pytest.raises(Me5Error, match=r"no instruction for MockClassificationTask \(Classification\): leave it out"):
        instructed(mock_classification.MockClassificationTask())


def test_another_model_keeps_its_own_prompts():
    recorder = Recorder()
    recorder.own_prompts = {}
    for protocol in ("paper", "mteb"):
        mteb.evaluate(Protocol(recorder, "r", protocol, revision="0"), mock_sts.MockSTSTask(), cache=None,
                      show_progress_bar=False)
    recorder.own_prompts = {"query": "ask: ", "STS": "same: "}
    mteb.evaluate(Protocol(recorder, "r", revision="0"), mock_sts.MockSTSTask(), cache=None, show_progress_bar=False)
    assert [prefix for prefix, *_ in recorder.seen] == [""] * (n := len(recorder.seen) // 3 * 2) + ["same: "] * (n // 2)
    rule = Protocol(recorder, "r", revision="0").rule(retrieval.MockRetrievalTask().metadata)
    assert rule[:2] == ("ask: ", "")


def test_fingerprint_follows_the_weights_and_the_vocabulary(tmp_path):
    from me5lib.model.encoder import Encoder
    from me5lib.model.text import train_tokenizer

    words = [[f"{a}{b} {b}{a}" for a in letters for b in "aeiou"] * 20 for letters in ("klmnoprstu", "bcdfghj")]
    one, two = (train_tokenizer(texts, 330, tmp_path / str(i)) for i, texts in enumerate(words))
    shape = config.load("smoke").model
    first = fingerprint(Encoder.new(shape, one, 0))
    encoder = Encoder.new(shape, one, 0)
    encoder.encode(["ka ko"])  # switches truncation off below, which changes nothing
    assert first == fingerprint(encoder)
    assert len({first, fingerprint(Encoder.new(shape, one, 1)), fingerprint(Encoder.new(shape, two, 0))}) == 3


def test_unknown_protocol():
    with pytest.raises(Me5Error, match="unknown protocol 'papr': choose one of paper, mteb"):
        Protocol(Recorder(), "x", "papr", revision="0")


HUB = """
import json, sys
sys.path[:0] = [{tests!r}, {hub!r}]
import mteb
from test_protocol import Recorder
from me5lib.evaluate.protocol import Protocol

found = {{}}
for name, subsets in (("STSBenchmark", None), ("SciFact", None), ("Tatoeba", ["deu-eng", "jpn-eng"])):
    task = mteb.get_task(name, hf_subsets=subsets) if subsets else mteb.get_task(name)
    recorder = Recorder()
    model = Protocol(recorder, "recorder", revision="0")
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    by_prefix = {{}}
    for prefix, text, normalise in recorder.seen:
        by_prefix.setdefault(prefix, []).append(text)
    found[name] = {{"score": result.task_results[0].get_score(), "norm": all(n for *_, n in recorder.seen),
                   "texts": {{p: [len(t), t[0]] for p, t in by_prefix.items()}}}}
print("FOUND" + json.dumps(found))
"""


def test_real_tasks_of_mteb_from_a_hub(shared, tmp_path):
    sys.path.insert(0, str(shared / "hub"))
    import localhub

    server, endpoint = localhub.serve(shared / "hub" / "root")
    try:
        script = HUB.format(tests=str(Path(__file__).parent), hub=str(shared / "hub"))
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
                                    "HF_DATASETS_OFFLINE": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf8",
                              env=environment)
    finally:
        server.shutdown()
        sys.path.remove(str(shared / "hub"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.split("FOUND")[1])
    assert all(row["norm"] for row in found.values())
    assert list(found["STSBenchmark"]["texts"]) == list(found["Tatoeba"]["texts"]) == [Q]
    assert found["SciFact"]["texts"].keys() == {Q, P}
    assert (found["SciFact"]["texts"][Q][0], found["SciFact"]["texts"][P][0]) == (300, 5183)
    assert found["SciFact"]["texts"][P][1].startswith("Microstructural development of human newborn cerebral")
