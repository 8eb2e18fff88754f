"""Teachers, against models called by hand; their scores, kept by blocks, damaged ones mended; and me5 teach."""

import json
import math
import re

import numpy as np
import pytest
import torch

from me5lib import config, device, io
from me5lib.data import split
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.pairs import Labelled
from me5lib.train import teacher
from me5lib.train.teacher import Teacher

COLOURS = ["red", "green", "blue", "white", "black", "yellow"]
PREFIXES, LENGTHS = ("query: ", "passage: "), (16, 16)
PAIRS = [(f"query: {a}", f"passage: {b} car " + "house " * (i % 4)) for i, a in enumerate(COLOURS) for b in COLOURS]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"{a} {b} {i}" for a in COLOURS for b in ("car", "house") for i in range(5)], 400)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder.new(config.Model("random", 1, 32, 2, 64, 400, 48), tokenizer, 0)


STAGE = config.load("smoke").finetune


def scores_of(made, pairs, lengths=LENGTHS):
    return teacher.score_pairs(pairs, made, lengths)


# ---- the teacher of one's own ----------------------------------------------------------------------------------------


def test_the_teacher_reads_both_texts_together_however_they_are_cut_into_pieces(encoder, monkeypatch):
    made = Teacher(encoder, 0.05, 0)
    pairs = [("query: red car", "passage: green house"), ("query: red car", "passage: blue house far away"), *PAIRS[:4]]
    rows, query = made.tokenize(pairs, LENGTHS), encoder.tokenize(["red car"], "query: ")[0]
    passage = encoder.tokenize(["green house"], "passage: ")[0][1:]
    assert rows[0] == {"input_ids": query + passage, "token_type_ids": [0] * len(query) + [1] * len(passage)}
    whole = made(rows, 2)
    assert torch.allclose(whole[:1], made(made.tokenize(pairs[1::-1], LENGTHS), 2).flip(1), atol=1e-5)
    monkeypatch.setattr(teacher, "TRAINING_PIECE", 20)
    assert torch.allclose(made(rows, 2), whole, atol=1e-4)
    assert not {p.data_ptr() for p in made.parameters()} & {p.data_ptr() for p in encoder.parameters()}  # a copy
    with pytest.raises(Me5Error, match="reads 48 tokens of query and passage together"):
        made.tokenize(pairs, (32, 32))
    fp32 = device.precision(CPU).name == "fp32"
    assert scores_of(made, pairs) == pytest.approx(whole.detach().numpy().ravel(), abs=1e-4 if fp32 else 0.1)


def test_a_teacher_that_was_saved_scores_the_same_and_is_known_by_its_files(encoder, tmp_path):
    made = Teacher(encoder, 0.05, 3)
    torch.nn.init.normal_(made.head[2].weight)
    made.save(tmp_path / "kept", {"made of": "nothing"})
    assert {path.suffix for path in (tmp_path / "kept").rglob("*") if path.is_file()} == {".json", ".safetensors"}
    again = teacher.open_teacher(str(tmp_path / "kept"), CPU)
    assert isinstance(again, Teacher) and again.temperature == 0.05
    assert np.array_equal(scores_of(again, PAIRS), scores_of(made, PAIRS))
    before = teacher.teacher_fingerprint(str(tmp_path / "kept"))
    assert again.identity == {"files": before}
    torch.nn.init.zeros_(made.head[2].weight)
    made.save(tmp_path / "kept")
    assert teacher.teacher_fingerprint(str(tmp_path / "kept")) != before and not list(tmp_path.glob(".*"))
    for file in ("head.safetensors", "teacher.json", "encoder/model.safetensors"):
        made.save(tmp_path / "kept")
        (tmp_path / "kept" / file).write_bytes(b"{")
        with pytest.raises(Me5Error):
            teacher.open_teacher(str(tmp_path / "kept"), CPU)


def test_the_students_scores_are_its_cosines_with_each_sources_prefixes(encoder):
    rows = [Labelled("red car", ("car red",), ("blue house", "green house"), "t", "en"),
            Labelled("blue car", ("car blue",), ("red house", "white house"), "s", "en")]
    found = teacher.student_scores(encoder, rows, lambda source: (f"{source} ", "passage: "), STAGE)
    fast = {"precision": device.precision(encoder.device).name}
    left, right = encoder.encode(["blue car"], "s ", **fast), encoder.encode(["white house"], "passage: ", **fast)
    assert found.shape == (2, 3) and found[1, 2] == pytest.approx(float(left[0] @ right[0]), abs=1e-3)


def test_a_teacher_to_which_all_passages_are_alike_puts_no_positive_first(encoder):
    made = Counting()
    made.scores = lambda pairs, lengths: np.zeros(len(pairs), np.float32)
    rows = [Labelled("red car", ("red car",), ("blue house", "green house"), "t", "en")]
    verdict = teacher.judge(made, encoder, rows, STAGE, lambda source: ("", ""))
    assert (verdict.teacher, verdict.student, verdict.queries, verdict.size) == (0.0, 1.0, 1, 3)


# ---- cross-encoders of the hub ---------------------------------------------------------------------------------------


def write_reranker(folder, tokenizer, labels=1, kind="XLMRoberta", positions=50):
    """A tiny cross-encoder with random weights, as a repository of the hub has one."""
    import transformers

    shape = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, pad_token_id=1, num_labels=labels, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(shape).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["XLMRoberta", "Bert"])
def test_a_reranker_scores_as_its_own_classes_do_each_side_cut_by_its_own_limit(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(teacher, "precision", lambda _: device.Precision("fp32", ""))
    tokenizer = train_tokenizer([f"{a} {b} {i}" for a in COLOURS for b in ("car", "house") for i in range(5)], 400)
    if kind == "Bert":  # two segments
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s>:0 $A:0 </s>:0 $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model = write_reranker(tmp_path / "one", tokenizer, kind=kind, positions=130)
    made = teacher.open_teacher(str(tmp_path / "one"), CPU)
    pairs, right = [(q.removeprefix("query: "), p) for q, p in PAIRS], []
    for query, passage in pairs:
        batch = tokenizer(query, passage, return_tensors="pt")
        assert ("token_type_ids" in batch) == (kind == "Bert")
        with torch.no_grad():
            right.append(model(**batch).logits.item())
    assert np.std(right) > 0.1 and scores_of(made, pairs, (60, 60)) == pytest.approx(right, abs=1e-4)
    monkeypatch.setattr(teacher, "piece_tokens", lambda device: 30)
    assert scores_of(made, pairs, (60, 60)) == pytest.approx(right, abs=1e-4)
    if kind == "XLMRoberta":
        sides = "red car and blue car", "white house and a black house"
        q, p = (tokenizer(text, add_special_tokens=False).input_ids for text in sides)
        assert len(q) > 4 and len(p) > 7
        with torch.no_grad():
            cut = model(input_ids=torch.tensor([[0, *q[:4], 2, 2, *p[:7], 2]])).logits.item()
        assert scores_of(made, [sides], (4, 7)) == pytest.approx([cut], abs=1e-5)
        with pytest.raises(Me5Error, match="reads 124 tokens of query and passage together"):  # 130 − 2, 4 special
            scores_of(made, pairs, (64, 64))
    torch.nn.init.constant_(next(made.model.classifier.parameters()), math.nan)
    with pytest.raises(Me5Error, match=f"{tmp_path / 'one'} gave 36 of 36 pairs no finite score"):
        scores_of(made, pairs, (60, 60))


def test_what_is_no_teacher_is_refused_and_says_what_to_do(encoder, tmp_path):
    write_reranker(tmp_path / "three", encoder.tokenizer, labels=3)
    encoder.save(tmp_path / "encoder")
    write_reranker(tmp_path / "pickled", encoder.tokenizer)
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    for name, message in ((tmp_path / "three", "no cross-encoder with one logit a pair"),
                          (tmp_path / "encoder", "no cross-encoder with one logit a pair"),
                          (tmp_path / "pickled", "or a reranker with weights as safetensors"),
                          ("no-such/reranker", "is not in the cache .* finetune.teacher=trained"),
                          ("me5-small-q4", "is an encoder, no cross-encoder: make a teacher")):  # fmt: skip
        with pytest.raises(Me5Error, match=message):
            teacher.open_teacher(str(name), CPU)


# ---- scores that are kept --------------------------------------------------------------------------------------------

GROUPS = [Labelled(f"q{i}", (f"right {i}",), tuple(f"wrong {'word ' * j}{i}" for j in range(i % 4)), "s", "en")
          for i in range(18)]  # fmt: skip
KEPT = [(row.query, text) for row in GROUPS for text in (*row.positives, *row.negatives)]


def truth(pairs):
    return np.float32([len(query) - 2 * len(text) + sum(map(ord, query + text)) % 97 / 7 for query, text in pairs])


class Counting:
    """Gives `truth`, and notes what it scored."""

    name, prefixed, identity = "X", False, {"model": "one", "revision": "a1"}

    def __init__(self, wrong=()):
        self.scored, self.wrong = [], wrong

    def scores(self, pairs, lengths):
        self.scored += pairs
        return np.where([pair in self.wrong for pair in pairs], np.nan, truth(pairs))


def block(folder, made=None, pairs=KEPT, limits=(9, 9), **identity):
    """The scores of a block; how many the teacher was asked for."""
    made = made or Counting()
    made.identity, before = {**Counting.identity, **identity}, len(made.scored)
    return teacher.block_scores(pairs, made, limits, folder).tolist(), len(made.scored) - before


def score_groups(folder, made):
    """The scores of all `KEPT`, in blocks of four groups, which are ten pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "GROUPS_A_FILE", 4)
        return np.concatenate(teacher.score_groups(made, GROUPS, STAGE, lambda source: ("", ""), folder)).tolist()


def test_each_pair_is_scored_once_in_its_place_and_the_block_read_the_next_time(tmp_path, monkeypatch):
    twice = [*KEPT, *KEPT[::-1]]
    for asked in (len(KEPT), 0):
        assert block(tmp_path / "new" / "folder", pairs=twice) == (truth(twice).tolist(), asked)
    cases = [{"pairs": [("ab", "c")]}, {"pairs": [("a", "bc")]}, {"pairs": [("c", "ab")]}, {}, {"revision": "b2"},
             {"limits": (9, 8)}]  # fmt: skip
    asked = [block(tmp_path, **case)[1] for case in (*cases, *cases)]
    assert all(asked[:6]) and not any(asked[6:])
    monkeypatch.setattr(teacher, "VERSION", teacher.VERSION + 1)
    assert block(tmp_path)[1]


def test_a_file_that_is_damaged_is_said_and_scored_again(tmp_path, capsys):
    block(tmp_path)
    (path,) = tmp_path.iterdir()
    np.save(path, truth(KEPT[1:]))
    for asked in (len(KEPT), 0):
        assert block(tmp_path) == (truth(KEPT).tolist(), asked)
    assert capsys.readouterr().err == f"{path} is damaged: its {len(KEPT)} pairs are scored again\n"


def test_scores_that_are_no_numbers_are_refused_with_how_many_and_the_blocks_before_them_kept(tmp_path):
    with pytest.raises(Me5Error, match="X gave 2 of 10 pairs no finite score .the first: query 'q9'"):
        score_groups(tmp_path, Counting(wrong=KEPT[22:24]))
    made = Counting()
    assert score_groups(tmp_path, made) == truth(KEPT).tolist() and sorted(made.scored) == sorted(KEPT[20:])


def test_two_that_write_the_same_block_at_once_do_no_harm(tmp_path, monkeypatch):
    def second(path, sync=io.sync):
        monkeypatch.setattr(io, "sync", sync)
        assert block(tmp_path)[1]

    monkeypatch.setattr(io, "sync", second)  # the first has written its file beside, and not renamed it
    assert block(tmp_path)[1]
    assert [np.load(path).tolist() for path in tmp_path.iterdir()] == [truth(KEPT).tolist()]


# ---- me5 teach -------------------------------------------------------------------------------------------------------


def write_examples(path, rows, listed=False):
    lines = [json.dumps([i, *row]) if listed else json.dumps({"query": row.query, "positives": row.positives,
             "negatives": row.negatives}) for i, row in enumerate(rows)]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return path


@pytest.fixture(scope="module")
def many():
    wrong = {colour: tuple(f"{other} answer" for other in COLOURS if other != colour) for colour in COLOURS}
    return [Labelled(f"which {colour} thing is number {i}", (f"{colour} answer",), wrong[colour], "own data", "und")
            for i in range(30) for colour in COLOURS]  # fmt: skip


def test_a_teacher_is_trained_judged_kept_and_loaded_again(many, tmp_path, capsys):
    from me5lib.cli import train as commands

    texts = [text for row in many for text in (row.query, *row.positives)]
    Encoder.new(config.Model("random", 1, 16, 2, 32, 400, 48), train_tokenizer(texts, 400), 0).save(tmp_path / "start")
    data = write_examples(tmp_path / "groups.jsonl", [*many, many[0]._replace(positives=())])
    settings = ["finetune.teacher_steps=40", "finetune.batch=16", "finetune.lr=0.003", "finetune.query_tokens=16",
                "finetune.passage_tokens=16"]  # fmt: skip
    commands.teach_command(data, str(tmp_path / "start"), tmp_path / "out", "smoke", 0, settings)
    said = capsys.readouterr().out
    shown = re.search(r"teacher (\S+), its start (\S+), chance 0.125; stage 2 would listen$", said, re.M)
    assert shown and float(shown[1]) > 0.9 > float(shown[2]) + 0.2 and ", 1 no positive passage\n" in said
    made = teacher.open_teacher(str(tmp_path / "out"), CPU)
    held = [row for row in many if split.fraction(row.query) < teacher.JUDGED_SHARE]
    stage = config.load("smoke", settings).finetune
    scores = np.stack(teacher.score_groups(made, held, stage, lambda _: PREFIXES))
    assert 5 < len(held) < 40 and (scores.argmax(1) == 0).mean() > 0.9
    about = json.loads((tmp_path / "out" / "teacher.json").read_text(encoding="utf8"))
    assert about["verdict"]["teacher"] == pytest.approx(float(shown[1]), abs=1e-3)
    with pytest.raises(Me5Error, match="is there already"):
        commands.teach_command(data, str(tmp_path / "start"), tmp_path / "out")


def test_examples_are_read_from_both_forms_and_bad_lines_are_named(many, tmp_path):
    pairs = write_examples(tmp_path / "a.jsonl", many)
    assert teacher.read_examples(pairs) == (many, {})
    few = [*many[:30], many[0]._replace(query=" ")]
    groups = write_examples(tmp_path / "b.jsonl", few, listed=True)
    assert teacher.read_examples(groups) == (few[:30], {"examples without a query": 1})
    for path, line, fault in ((pairs, "{", "line 181"), (groups, "[1, 2", "line 32 is no group"),
                              (groups, "[1, 2]", "line 32 is no group"), (tmp_path / "none.jsonl", "", "no file")):
        broken = tmp_path / f"broken-{path.name}"
        if path.exists():
            broken.write_text(path.read_text(encoding="utf8") + line + "\n", encoding="utf8")
        with pytest.raises(Me5Error, match=fault):
            teacher.read_examples(broken)
