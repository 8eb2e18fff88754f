"""Teachers and what they hand on, against formulas written out by hand and models called by hand."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from me5lib import config, device
from me5lib.io import Me5Error
from me5lib.model.encoder import Encoder
from me5lib.model.text import train_tokenizer
from me5lib.pairs import Labelled
from me5lib.train import distill, finetune_plan, groups, stages
from me5lib.train.distributed import Team, launch
from me5lib.train.score_cache import score_pairs
from me5lib.train.stages import MicroBatch, global_loss

COLOURS = ["red", "green", "blue", "white", "black", "yellow"]
PREFIXES, LENGTHS = ("query: ", "passage: "), (16, 16)


@pytest.fixture(scope="module")
def encoder():
    tokenizer = train_tokenizer([f"{a} {b} {i}" for a in COLOURS for b in ("car", "house") for i in range(5)], 400)
    return Encoder.new(config.Model("random", 1, 32, 2, 64, 400, 48), tokenizer, 0)


def test_kl_is_from_teacher_to_student_by_hand():
    student, teacher = [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]], [[2.0, 1.0, 0.0], [3.0, 0.0, 0.0]]
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = [math.exp(x / 2) / sum(math.exp(y / 2) for y in t) for x in t]
        q = [math.exp(x) / sum(math.exp(y) for y in s) for x in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert distill.kl(torch.tensor(student), torch.tensor(teacher), 2.0).item() == pytest.approx(total / 2, abs=1e-6)


def test_kl_is_nothing_when_they_agree_and_does_not_care_for_a_constant():
    scores = torch.randn(4, 5, dtype=torch.float64)
    assert distill.kl(scores, scores + 7).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_kl_is_what_the_student_gives_minus_what_the_teacher_gives():
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    distill.kl(student, teacher).backward()
    assert torch.allclose(student.grad, (student.softmax(1) - teacher.softmax(1)).detach() / 3)


def test_a_row_weighs_the_same_in_any_batch():
    """The mean over two halves is the mean over the whole: no term depends on how the batch is cut."""
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    halves = (distill.kl(student[:3], teacher[:3]) + distill.kl(student[3:], teacher[3:])) / 2
    assert distill.kl(student, teacher).item() == pytest.approx(halves.item(), rel=1e-5)


def test_group_scores_are_the_cosines_of_a_query_with_its_own_passages():
    queries = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    passages = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    found = distill.group_scores(queries, passages, 0.05)
    for i in range(3):
        for g in range(4):
            assert found[i, g].item() == pytest.approx(20 * float(queries[i] @ passages[4 * i + g]), abs=1e-4)


def test_the_teacher_reads_both_texts_together(encoder):
    teacher = distill.Teacher(encoder, 0.05, 0)
    groups = teacher.tokenize(["red car"], [["green house", "blue house"]], PREFIXES, LENGTHS)
    alone = encoder.tokenize(["red car"], "query: ")[0]
    assert groups.ids[0][: len(alone)] == alone and groups.cuts == [len(alone)] * 2
    assert groups.ids[0][len(alone) :] == encoder.tokenize(["green house"], "passage: ")[0][1:]
    other = teacher.tokenize(["red car"], [["blue house", "green house"]], PREFIXES, LENGTHS)
    assert torch.allclose(teacher(groups), teacher(other).flip(1), atol=1e-5)  # order of passages is nothing to it


def test_scores_do_not_depend_on_how_the_inputs_are_cut_into_pieces(encoder, monkeypatch):
    teacher = distill.Teacher(encoder, 0.05, 0)
    texts = [[f"{a} car {i}", f"{a} house that is much longer than the car {i}"] for i, a in enumerate(COLOURS)]
    groups = teacher.tokenize([f"{a} car" for a in COLOURS], texts, PREFIXES, LENGTHS)
    whole = teacher(groups)
    monkeypatch.setattr(distill, "PIECE", 20)
    assert torch.allclose(teacher(groups), whole, atol=1e-4)
    one = teacher(teacher.tokenize(["blue car"], texts[2:3], PREFIXES, LENGTHS))
    assert torch.allclose(one, whole[2:3], atol=1e-4)


def test_a_teacher_is_a_copy_that_leaves_the_student_alone(encoder):
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    teacher = distill.Teacher(encoder, 0.05, 0)
    adamw = torch.optim.AdamW(teacher.parameters(), lr=0.01)
    distill.listwise(teacher(teacher.tokenize(["red"], [["car", "house"]], PREFIXES, LENGTHS))).backward()
    adamw.step()
    assert all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())


def test_the_teacher_learns_what_a_group_is_about(encoder):
    """Six colours: which passage names the query's colour cannot be read off the passage alone."""
    torch.manual_seed(0)
    teacher = distill.Teacher(encoder, 0.05, 0)
    rng = np.random.default_rng(0)
    queries = [COLOURS[i % 6] for i in range(48)]
    texts = [[f"{q} car", *(f"{c} car" for c in rng.permutation([c for c in COLOURS if c != q])[:3])] for q in queries]
    groups = teacher.tokenize(queries, texts, PREFIXES, LENGTHS)
    adamw = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    first = distill.listwise(teacher(groups)).item()
    for _ in range(30):
        adamw.zero_grad()
        loss = distill.listwise(teacher(groups))
        loss.backward()
        adamw.step()
    assert loss.item() < 0.1 < first
    assert distill.first_place(teacher.score(queries, texts, PREFIXES, LENGTHS)).mean() == 1.0


def test_unequal_groups_and_texts_too_long_together_are_refused(encoder):
    teacher = distill.Teacher(encoder, 0.05, 0)
    with pytest.raises(ValueError, match="same number"):
        teacher.tokenize(["a", "b"], [["c"], ["d", "e"]], PREFIXES, LENGTHS)
    with pytest.raises(ValueError, match="do not fit"):
        teacher.tokenize(["a"], [["c"]], PREFIXES, (32, 32))


def test_a_tie_is_no_win_and_only_a_better_teacher_is_trusted():
    assert distill.first_place(np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]])).tolist() == [False, True, False]
    assert distill.Verdict(0.6, 0.5, 100, 8).trusted and not distill.Verdict(0.5, 0.5, 100, 8).trusted


def test_the_students_scores_are_its_cosines(encoder):
    rows = [Labelled("red car", ("car red",), ("blue house", "green house"), "s", "en"),
            Labelled("blue car", ("car blue",), ("red house", "white house"), "s", "en")]
    found = distill.student_scores(encoder, rows, PREFIXES, LENGTHS)
    fast = {"precision": distill.precision(encoder.device).name}
    left, right = encoder.encode(["blue car"], "query: ", **fast), encoder.encode(["white house"], "passage: ", **fast)
    assert found.shape == (2, 3) and found[1, 2] == pytest.approx(float(left[0] @ right[0]), abs=1e-5)


# ---- a teacher that is kept ------------------------------------------------------------------------------------------


def scores_of(teacher, pairs, lengths=LENGTHS):
    return score_pairs(pairs, lambda some: teacher.pieces(some, lengths))


PAIRS = [(f"query: {a}", f"passage: {b} car " + "house " * (i % 4)) for i, a in enumerate(COLOURS) for b in COLOURS]


def test_a_teacher_that_was_saved_scores_the_same_and_is_known_by_its_files(encoder, tmp_path):
    teacher = distill.Teacher(encoder, 0.05, 3)
    torch.nn.init.normal_(teacher.head[2].weight)
    teacher.save(tmp_path / "kept", {"made of": "nothing"})
    files = [path.suffix for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert set(files) == {".json", ".safetensors"}
    again = distill.open_teacher(str(tmp_path / "kept"), torch.device("cpu"))
    assert isinstance(again, distill.Teacher) and again.temperature == 0.05
    assert np.array_equal(scores_of(again, PAIRS), scores_of(teacher, PAIRS))
    before = distill.origin(str(tmp_path / "kept"))
    assert again.identity == {"files": before}
    torch.nn.init.zeros_(teacher.head[2].weight)
    teacher.save(tmp_path / "kept")
    assert distill.origin(str(tmp_path / "kept")) != before and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("file", ["head.safetensors", "teacher.json", "encoder/model.safetensors"])
def test_a_damaged_teacher_is_refused(encoder, tmp_path, file):
    distill.Teacher(encoder, 0.05, 0).save(tmp_path / "kept")
    (tmp_path / "kept" / file).write_bytes(b"{")
    with pytest.raises(Me5Error):
        distill.open_teacher(str(tmp_path / "kept"), torch.device("cpu"))


def test_scores_by_groups_are_those_of_the_pairs(encoder):
    teacher = distill.Teacher(encoder, 0.05, 0)
    texts = [["car red", "house", "blue house and a car"], ["car", "green", "white"]]
    found = teacher.score(["red", "blue"], texts, PREFIXES, LENGTHS)
    with torch.no_grad(), distill.autocast(encoder.device, distill.precision(encoder.device).name):
        right = teacher(teacher.tokenize(["red", "blue"], texts, PREFIXES, LENGTHS)).numpy()
    assert found.shape == (2, 3) and found == pytest.approx(right, abs=1e-4 if fp32() else 0.1)


def fp32():
    return distill.precision(torch.device("cpu")).name == "fp32"


# ---- cross-encoders of the hub ---------------------------------------------------------------------------------------


def write_reranker(folder, tokenizer, labels=1, kind="XLMRoberta", positions=50):
    """A tiny cross-encoder with random weights, as a repository of the hub has one."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, pad_token_id=1, num_labels=labels, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["XLMRoberta", "Bert"])
def test_a_reranker_scores_as_its_own_classes_do(encoder, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(distill, "precision", lambda _: device.Precision("fp32", ""))
    tokenizer = train_tokenizer([f"{a} {b} {i}" for a in COLOURS for b in ("car", "house") for i in range(5)], 400)
    if kind == "Bert":  # two segments
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s>:0 $A:0 </s>:0 $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model = write_reranker(tmp_path / "one", tokenizer, kind=kind, positions=130)
    teacher = distill.open_teacher(str(tmp_path / "one"), torch.device("cpu"))
    pairs = [(q.removeprefix("query: "), p) for q, p in PAIRS]
    right = []
    for query, passage in pairs:
        given = tokenizer(query, passage, return_tensors="pt")
        assert ("token_type_ids" in given) == (kind == "Bert")
        with torch.no_grad():
            right.append(model(**given).logits.item())
    assert np.std(right) > 0.1 and scores_of(teacher, pairs, (60, 60)) == pytest.approx(right, abs=1e-4)
    monkeypatch.setattr(distill, "piece_tokens", lambda device: 30)
    assert scores_of(teacher, pairs, (60, 60)) == pytest.approx(right, abs=1e-4)


def test_each_side_is_cut_by_its_own_limit(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "precision", lambda _: device.Precision("fp32", ""))
    tokenizer = encoder.tokenizer
    model = write_reranker(tmp_path / "one", tokenizer)
    teacher = distill.open_teacher(str(tmp_path / "one"), torch.device("cpu"))
    query, passage = "red car and blue car", "white house and a black house"
    q, p = (tokenizer(text, add_special_tokens=False).input_ids for text in (query, passage))
    ids = [0, *q[:4], 2, 2, *p[:7], 2]
    assert len(q) > 4 and len(p) > 7
    with torch.no_grad():
        right = model(input_ids=torch.tensor([ids])).logits.item()
    assert scores_of(teacher, [(query, passage)], (4, 7)) == pytest.approx([right], abs=1e-5)
    with pytest.raises(Me5Error, match="reads 44 tokens of query and passage together"):  # 50 − 2 positions, 4 special
        scores_of(teacher, [(query, passage)], (20, 25))


def test_what_is_no_teacher_is_refused_and_says_what_to_do(encoder, tmp_path):
    write_reranker(tmp_path / "three", encoder.tokenizer, labels=3)
    with pytest.raises(Me5Error, match="gives 3 logits a pair"):
        distill.open_teacher(str(tmp_path / "three"), torch.device("cpu"))
    encoder.save(tmp_path / "encoder")
    with pytest.raises(Me5Error, match="is no cross-encoder .it lacks classifier"):
        distill.open_teacher(str(tmp_path / "encoder"), torch.device("cpu"))
    write_reranker(tmp_path / "pickled", encoder.tokenizer)
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(Me5Error, match="safetensors is wanted"):
        distill.open_teacher(str(tmp_path / "pickled"), torch.device("cpu"))
    with pytest.raises(Me5Error, match="no-such/reranker is not in the cache .* finetune.teacher=trained"):
        distill.open_teacher("no-such/reranker", torch.device("cpu"))


# ---- the loss of stage 2, as the stage computes it -------------------------------------------------------------------


class Toy(torch.nn.Module):
    """Unit vectors in float64 out of the sum of a text's letters: an encoder as far as `stages._stage2` sees."""

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


def stage_of(**dials):
    given = {"steps": 3, "batch": 6, "hard_negatives": 2, "loss": "one-way", "temperature": 0.1,
             "teacher_temperature": 2.0, "query_tokens": 99, "passage_tokens": 99}  # fmt: skip
    return dataclasses.replace(config.load("smoke").finetune, **given | dials)


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
    plan = finetune_plan.Plan(rows, stage, 0, 1.0)
    made = groups.Made(dict(enumerate(rows)), True)
    prepare = stages._stage2(toy, team, plan, made, stage, 0, stages.Budget(2**20, 2**20), lambda source: PREFIXES)
    found = []
    for step in steps:
        loss = prepare(step).compute()
        found.append([team.mean(loss.item()), toy.letters.weight.grad.flatten().tolist()])
        toy.zero_grad()
    return found


def by_hand(stage, step):
    """KL and InfoNCE of a step in plain loops: means over its rows."""
    toy, rows = Toy(), examples()
    drawn = finetune_plan.Plan(rows, stage, 0, 1.0).draws(step)
    group = []
    for i, turn in drawn:
        places = [(turn * 2 + j) % 4 for j in range(2)]
        group.append((rows[i], [rows[i].negatives[j] for j in places],
                      [rows[i].teacher_scores[0], *(rows[i].teacher_scores[1 + j] for j in places)]))  # fmt: skip

    def vector(text):
        return toy(toy.tokenize([text])).detach()[0]

    texts = [(text, own) for own, (row, wrong, _) in enumerate(group) for text in (row.positives[0], *wrong)]
    lesson = contrast = 0.0
    for own, (row, wrong, told) in enumerate(group):
        asked = vector("query: " + row.query)
        logits = [float(asked @ vector("passage: " + text)) / 0.1 for text in (row.positives[0], *wrong)]
        s = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
        t = [math.exp(x / 2) / sum(math.exp(y / 2) for y in told) for x in told]
        lesson += sum(a * math.log(a / b) for a, b in zip(t, s, strict=True)) / len(group)
        rivals = []
        for text, of in texts:
            again = of != own and (group[of][0].query == row.query or text == row.positives[0])
            if not again:
                rivals.append(math.exp(float(asked @ vector("passage: " + text)) / 0.1))
        contrast += -math.log(math.exp(logits[0]) / sum(rivals)) / len(group)
    return lesson, contrast


def test_stage_2_is_kl_plus_alpha_times_info_nce_by_hand():
    for alpha in (0.0, 0.2, 3.0):
        stage = stage_of(contrastive_weight=alpha)
        for step, (loss, _) in enumerate(measured(Team.alone(), stage)):
            lesson, contrast = by_hand(stage, step)
            assert lesson > 0.05 and contrast > 0.5
            assert loss == pytest.approx(lesson + alpha * contrast, abs=1e-6)


def test_both_terms_pass_gradcheck():
    torch.manual_seed(0)
    queries, passages = torch.randn(3, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    scores = torch.randn(3, 3, dtype=torch.float64)
    related = distill_relations()

    def loss(q, p):
        q, p = torch.nn.functional.normalize(q, dim=1), torch.nn.functional.normalize(p, dim=1)
        batch = MicroBatch([], related, scores)
        return global_loss(torch.cat([q, p]), batch, stage_of(contrastive_weight=0.2))

    assert torch.autograd.gradcheck(loss, (queries.requires_grad_(), passages.requires_grad_()))


def distill_relations():
    from me5lib.train.loss import from_labelled

    return from_labelled([row._replace(negatives=row.negatives[:2]) for row in examples()[:3]]).relations


RANK = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch, torch.distributed as processes
import test_distill as the
from torch.nn.parallel import DistributedDataParallel
from me5lib.train.distributed import Team
rank, found = int(os.environ["RANK"]), {}
for world in (4, 2):
    if rank < world:
        store = processes.FileStore(str(Path(sys.argv[1]) / f"meet{world}"), world)
        processes.init_process_group("gloo", store=store, rank=rank, world_size=world)
        team = Team(rank, world, torch.device("cpu"), DistributedDataParallel)
        for alpha in (0.0, 1.0):
            found[f"{world} {alpha}"] = the.measured(team, the.stage_of(contrastive_weight=alpha))
        processes.destroy_process_group()
if rank == 0:
    Path(sys.argv[1], "found.json").write_text(json.dumps(found), encoding="utf8")
sys.stdout.flush()
os._exit(0)
"""


def test_each_term_and_their_ratio_are_the_same_at_every_world_size(tmp_path):
    """Six rows on one, two and four processes (1, 2, 1 and 2 rows each): KL alone, and with InfoNCE, in float64."""
    launch([[sys.executable, "-c", RANK, str(tmp_path), str(Path(__file__).parent)]] * 4, tmp_path, timeout=120)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf8"))
    for alpha in (0.0, 1.0):
        right = measured(Team.alone(), stage_of(contrastive_weight=alpha))
        for world in (2, 4):
            for (loss, gradient), (one, whole) in zip(found[f"{world} {alpha}"], right, strict=True):
                assert loss == pytest.approx(one, rel=1e-6) and gradient == pytest.approx(whole, rel=1e-6, abs=1e-9)
