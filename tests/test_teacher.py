"""Teachers and what they hand on, against formulas written out by hand and models called by hand; their scores are
kept by blocks: a killed run loses one block and ends with the same scores; damage is seen and mended."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from me5lib import config, device, io
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.pairs import Labelled, text_key
from me5lib.train import labelled, stages, teacher
from me5lib.train.distributed import Team, launch
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


def stage_of(**settings):
    given = {"steps": 3, "batch": 6, "hard_negatives": 2, "loss": "one-way", "temperature": 0.1,
             "teacher_temperature": 2.0, "query_tokens": 99, "passage_tokens": 99}  # fmt: skip
    return dataclasses.replace(config.load("smoke").finetune, **given | settings)


def scores_of(made, pairs, lengths=LENGTHS):
    return teacher.block_scores(pairs, made, lengths, None)[0]


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_kl_is_from_teacher_to_student_by_hand_and_its_gradient_the_difference():
    student, scores = [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]], [[2.0, 1.0, 0.0], [3.0, 0.0, 0.0]]
    total = 0.0
    for s, t in zip(student, scores, strict=True):
        p = [math.exp(x / 2) / sum(math.exp(y / 2) for y in t) for x in t]
        q = [math.exp(x) / sum(math.exp(y) for y in s) for x in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    student = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    found = teacher.kl_divergence(student, torch.tensor(scores, dtype=torch.float64), 2.0)
    assert found.item() == pytest.approx(total / 2, abs=1e-6)
    found.backward()
    target = (torch.tensor(scores, dtype=torch.float64) / 2).softmax(1)
    assert torch.allclose(student.grad, (student.softmax(1) - target).detach() / 2)
    assert teacher.kl_divergence(student, student + 7).item() == pytest.approx(0, abs=1e-12)


def test_a_tie_is_no_win_and_only_a_better_teacher_is_trusted():
    assert teacher.first_place(np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]])).tolist() == [False, True, False]
    assert teacher.TeacherVerdict(0.6, 0.5, 100, 8).trusted and not teacher.TeacherVerdict(0.5, 0.5, 100, 8).trusted


# ---- the teacher of one's own ----------------------------------------------------------------------------------------


def test_the_teacher_reads_both_texts_together_however_they_are_cut_into_pieces(encoder, monkeypatch):
    made = Teacher(encoder, 0.05, 0)
    pairs = [("query: red car", "passage: green house"), ("query: red car", "passage: blue house far away"), *PAIRS[:4]]
    rows, query = made.tokenize(pairs, LENGTHS), encoder.tokenize(["red car"], "query: ")[0]
    assert rows[0] == (query + encoder.tokenize(["green house"], "passage: ")[0][1:], len(query))
    whole = made(rows, 2)
    assert torch.allclose(whole[:1], made(made.tokenize(pairs[1::-1], LENGTHS), 2).flip(1), atol=1e-5)
    monkeypatch.setattr(teacher, "TRAINING_PIECE", 20)
    assert torch.allclose(made(rows, 2), whole, atol=1e-4)
    with pytest.raises(Me5Error, match="reads 48 tokens of query and passage together"):
        made.tokenize(pairs, (32, 32))
    fp32 = device.precision(CPU).name == "fp32"
    assert scores_of(made, pairs) == pytest.approx(whole.detach().numpy().ravel(), abs=1e-4 if fp32 else 0.1)


def test_the_teacher_learns_what_a_group_is_about_and_leaves_the_student_alone(encoder):
    """Six colours: which passage names the query's colour cannot be read off the passage alone."""
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    made, rng, pairs = Teacher(encoder, 0.05, 0), np.random.default_rng(0), []
    for i in range(48):
        others = rng.permutation([colour for colour in COLOURS if colour != COLOURS[i % 6]])[:3]
        pairs += [(f"query: {COLOURS[i % 6]}", f"passage: {colour} car") for colour in (COLOURS[i % 6], *others)]
    groups, adamw = made.tokenize(pairs, LENGTHS), torch.optim.AdamW(made.parameters(), lr=3e-3)
    first = teacher.listwise(made(groups, 4)).item()
    for _ in range(30):
        adamw.zero_grad()
        found = teacher.listwise(made(groups, 4))
        found.backward()
        adamw.step()
    assert found.item() < 0.1 < first
    assert teacher.first_place(scores_of(made, pairs).reshape(48, 4)).all()
    assert all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())


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
    found = teacher.student_scores(encoder, rows, lambda source: (f"{source} ", "passage: "), stage_of())
    fast = {"precision": device.precision(encoder.device).name}
    left, right = encoder.encode(["blue car"], "s ", **fast), encoder.encode(["white house"], "passage: ", **fast)
    assert found.shape == (2, 3) and found[1, 2] == pytest.approx(float(left[0] @ right[0]), abs=1e-3)


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
                          (tmp_path / "pickled", "safetensors is wanted"),
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
    made = made or Counting()
    made.identity = {**Counting.identity, **identity}
    return teacher.block_scores(pairs, made, limits, folder)


def score_groups(folder, made):
    """The scores of all `KEPT`, in blocks of four groups, which are ten pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "GROUPS_A_FILE", 4)
        return np.concatenate(teacher.score_groups(made, GROUPS, stage_of(), lambda source: ("", ""), folder)).tolist()


def test_each_pair_is_scored_once_in_its_place_and_the_block_read_the_next_time(tmp_path, monkeypatch):
    made, twice = Counting(), [*KEPT, *KEPT[::-1]]
    for again in (False, True):
        scores, cached = block(tmp_path / "new" / "folder", made, twice)
        assert scores.dtype == np.float32 and np.array_equal(scores, truth(twice))
        assert cached is again and sorted(made.scored) == sorted(KEPT)
    cases = [{"pairs": [("ab", "c")]}, {"pairs": [("a", "bc")]}, {"pairs": [("c", "ab")]}, {}, {"revision": "b2"},
             {"limits": (9, 8)}]  # fmt: skip
    assert [block(tmp_path, **case)[1] for case in (*cases, *cases)] == [False] * 6 + [True] * 6
    monkeypatch.setattr(teacher, "VERSION", teacher.VERSION + 1)
    assert not block(tmp_path)[1]


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: np.save(path, truth(KEPT[1:])),
    lambda path: np.save(path, truth(KEPT) * np.nan),
])  # fmt: skip
def test_a_file_that_is_cut_short_or_of_another_length_is_said_and_scored_again(tmp_path, capsys, damage):
    block(tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    for again in (False, True):
        scores, cached = block(tmp_path)
        assert np.array_equal(scores, truth(KEPT)) and cached is again
    assert capsys.readouterr().err == f"{path} is damaged: its {len(KEPT)} pairs are scored again\n"


def test_scores_that_are_no_numbers_are_refused_with_how_many_and_the_blocks_before_them_kept(tmp_path):
    with pytest.raises(Me5Error, match="X gave 2 of 10 pairs no finite score .the first: query 'q9'"):
        score_groups(tmp_path, Counting(wrong=KEPT[22:24]))
    made = Counting()
    assert score_groups(tmp_path, made) == truth(KEPT).tolist() and sorted(made.scored) == sorted(KEPT[20:])


def test_two_that_write_the_same_block_at_once_do_no_harm(tmp_path, monkeypatch):
    def second(path, sync=io.sync):
        monkeypatch.setattr(io, "sync", sync)
        assert not block(tmp_path)[1]

    monkeypatch.setattr(io, "sync", second)  # the first has written its file beside, and not renamed it
    assert not block(tmp_path)[1]
    assert [np.load(path).tolist() for path in tmp_path.iterdir()] == [truth(KEPT).tolist()]


def test_a_folder_that_cannot_be_written_is_said_in_one_line_before_the_teacher_works(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf8")
    made = Counting()
    with pytest.raises(Me5Error, match="file cannot be written"):
        block(tmp_path / "file", made)
    assert not made.scored


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
    settings = ["finetune.teacher_steps=60", "finetune.batch=16", "finetune.lr=0.003", "finetune.query_tokens=16",
                "finetune.passage_tokens=16"]  # fmt: skip
    commands.teach_command(data, str(tmp_path / "start"), tmp_path / "out", "smoke", 0, settings)
    said = capsys.readouterr().out
    shown = re.search(r"teacher (\S+), its start (\S+), chance 0.125; stage 2 would listen$", said, re.M)
    assert shown and float(shown[1]) > 0.9 > float(shown[2]) + 0.2 and "1 examples without a positive" in said
    made = teacher.open_teacher(str(tmp_path / "out"), CPU)
    held = [row for row in many if text_key(row.query) < int(teacher.JUDGED_SHARE * 2**64) - 2**63]
    stage = config.load("smoke", settings).finetune
    scores = np.stack(teacher.score_groups(made, held, stage, lambda _: PREFIXES))
    assert 5 < len(held) < 40 and (scores.argmax(1) == 0).mean() > 0.9
    about = json.loads((tmp_path / "out" / "teacher.json").read_text(encoding="utf8"))
    assert about["verdict"]["teacher"] == pytest.approx(float(shown[1]), abs=1e-3)
    with pytest.raises(Me5Error, match="is there already"):
        commands.teach_command(data, str(tmp_path / "start"), tmp_path / "out")


def test_examples_are_read_from_both_forms_and_bad_lines_are_named(many, tmp_path):
    plain = list(teacher.read_examples(write_examples(tmp_path / "a.jsonl", many)))
    listed = list(teacher.read_examples(write_examples(tmp_path / "b.jsonl", many, listed=True)))
    assert plain == listed == many
    (tmp_path / "c.jsonl").write_text('{"query": "q", "positive": "p", "language": "de"}\n\n', encoding="utf8")
    assert list(teacher.read_examples(tmp_path / "c.jsonl")) == [Labelled("q", ("p",), (), teacher.OWN_DATA, "de")]
    bad = ("{", "[1, 2]", '{"query": "q"}', '{"query": 3, "positives": ["p"]}', '{"query": "q", "positives": [3]}')
    for line in bad:
        (tmp_path / "d.jsonl").write_text(f'{{"query": "q", "positives": ["p"]}}\n{line}\n', encoding="utf8")
        with pytest.raises(Me5Error, match="line 2 is no example"):
            list(teacher.read_examples(tmp_path / "d.jsonl"))
    with pytest.raises(Me5Error, match="there is no file"):
        list(teacher.read_examples(tmp_path / "none.jsonl"))


# ---- the loss of stage 2, as the stage computes it -------------------------------------------------------------------


class Toy(torch.nn.Module):
    """Unit vectors in float64 out of the sum of a text's letters: an encoder as far as a step sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.letters = torch.nn.EmbeddingBag(128, 6, mode="mean", dtype=torch.float64)

    def tokenize(self, texts, prefix="", longest=None):
        return [[ord(letter) % 128 for letter in text[:longest]] for text in texts]

    def forward(self, ids, *_):
        if not len(ids):
            return self.forward([[0]])[:0]
        flat = torch.tensor([token for row in ids for token in row])
        starts = torch.tensor([0, *(len(row) for row in ids)]).cumsum(0)[:-1]
        return torch.nn.functional.normalize(self.letters(flat, starts), dim=1)


def examples():
    """Nine rows of two passes' negatives, scored; two share a query, one's answer is another's wrong one."""
    draw = np.random.default_rng(0)
    queries = [f"{COLOURS[i % 6]} thing {i}" for i in range(8)] + ["red thing 0"]
    rows = [Labelled(query, (f"answer {i} {query}",), tuple(f"wrong {i} {j}" for j in range(4)), "s", "en",
                     tuple(draw.normal(size=5).round(3))) for i, query in enumerate(queries)]
    return [rows[0]._replace(negatives=(rows[1].positives[0], *rows[0].negatives[1:])), *rows[1:]]


def measured(team, stage, steps=(0, 1, 2)):
    """Loss and gradient of some steps, as the stage has them."""
    toy, rows = Toy(), examples()
    plan, made = labelled.SamplingPlan(rows, stage, 0, 1.0), dict(enumerate(rows))
    found = []
    for step in steps:
        batch = plan.batch(made, step, 2, team.rank, team.world)
        value = stages.work_of(batch, team.wrap(toy), toy, stage, team, stages.Budget(2**20, 2**20), (0, step),
                               lambda source: PREFIXES).compute()
        found.append([team.mean(value.item()), toy.letters.weight.grad.flatten().tolist()])
        toy.zero_grad()
    return found


def by_hand(stage, step):
    """KL and InfoNCE of a step in plain loops: means over its rows."""
    toy, rows = Toy(), examples()
    group = []
    for i, turn in labelled.SamplingPlan(rows, stage, 0, 1.0).draws(step):
        places = [(turn * 2 + j) % 4 for j in range(2)]
        group.append((rows[i], [rows[i].negatives[j] for j in places],
                      [rows[i].teacher_scores[0], *(rows[i].teacher_scores[1 + j] for j in places)]))  # fmt: skip

    def vector(text):
        return toy(toy.tokenize([text])).detach()[0]

    texts = [(text, own) for own, (row, wrong, _) in enumerate(group) for text in (row.positives[0], *wrong)]
    divergence = contrast = 0.0
    for own, (row, wrong, scores) in enumerate(group):
        asked = vector("query: " + row.query)
        logits = [float(asked @ vector("passage: " + text)) / 0.1 for text in (row.positives[0], *wrong)]
        s = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
        t = [math.exp(x / 2) / sum(math.exp(y / 2) for y in scores) for x in scores]
        divergence += sum(a * math.log(a / b) for a, b in zip(t, s, strict=True)) / len(group)
        rivals = [math.exp(float(asked @ vector("passage: " + text)) / 0.1) for text, of in texts
                  if of == own or (group[of][0].query != row.query and text != row.positives[0])]
        contrast += -math.log(math.exp(logits[0]) / sum(rivals)) / len(group)
    return divergence, contrast


def test_stage_2_is_kl_plus_alpha_times_info_nce_by_hand():
    for alpha in (0.0, 0.2, 3.0):
        stage = stage_of(contrastive_weight=alpha)
        for step, (found, _) in enumerate(measured(Team.alone(), stage)):
            divergence, contrast = by_hand(stage, step)
            assert divergence > 0.05 and contrast > 0.5
            assert found == pytest.approx(divergence + alpha * contrast, abs=1e-6)


RANK = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_teacher as the
from me5lib.train import distributed
team = distributed.join(2)
found = [the.measured(team, the.stage_of(contrastive_weight=alpha, batch=5)) for alpha in (0.0, 1.0)]
if team.main:
    Path(sys.argv[1], "found.json").write_text(json.dumps(found), encoding="utf8")
team.barrier()
distributed.leave()
"""


def test_each_term_and_their_ratio_are_the_same_at_every_world_size(tmp_path):
    """Five rows on one process and on two (two and three rows): KL alone, and with InfoNCE, in float64."""
    launch([[sys.executable, "-c", RANK, str(tmp_path), str(Path(__file__).parent)]] * 2, tmp_path, timeout=120)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf8"))
    for alpha, steps in zip((0.0, 1.0), found, strict=True):
        right = measured(Team.alone(), stage_of(contrastive_weight=alpha, batch=5))
        for (value, gradient), (one, whole) in zip(steps, right, strict=True):
            assert value == pytest.approx(one, rel=1e-6) and gradient == pytest.approx(whole, rel=1e-6, abs=1e-9)
