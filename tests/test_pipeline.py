"""Building at scale: what ends in the shards, how everything else is counted, kills, executors, and bad input."""

import gzip
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fixtures_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from fixtures_hub import HEAD, hashes
from typer.testing import CliRunner

from me5lib import io
from me5lib.data import cards, hub, pipeline, shards
from me5lib.data.builders import Drop
from me5lib.io import Me5Error, sha256
from me5lib.pairs import Labelled, Pair, normalise

ROOT = Path(__file__).parents[1]
TITLES = """hub:
  - repository: lab/titles
    files: "{language}/*.parquet"
    languages: {de: deu, sw: swh}
    columns: {title: string, text: string}
    read_from: unverified
    builder: titled
"""
LINES = """  - repository: lab/lines
    files: "data/*.jsonl.gz"
    columns: {title: string, text: string, lang: string}
    read_from: unverified
    builder: telling
"""
SIMPLE = HEAD + TITLES + LINES + "filters: {length: {least: 2}}\n---\nMade up.\n"
EXACT = SIMPLE.replace("{least: 2}", "{least: 2}, exact: {}")
CARD = EXACT.replace("exact: {}", "exact: {}, near: {threshold: 0.8}")


def titled(row, origin):
    """Title → text, one direction."""
    if row["title"].strip():
        yield Pair(row["title"].strip(), row["text"].strip(), origin.card, origin.language)
    else:
        yield Drop("empty title")


def telling(row, origin):
    """Title → text in the row's own language, and nothing for a row marked so."""
    if row["title"] != "nothing":
        yield Pair(row["title"].strip(), row["text"].strip(), origin.card, row["lang"])


def labelled(row, origin):
    """A labelled example with an instruction for every third row."""
    told = "Find it" if row["title"].endswith("3") else None
    yield Labelled(row["title"], (row["text"],), ("wrong",), origin.card, origin.language, instruction=told)


def failing(row, origin):
    """A builder with a fault."""
    yield Pair(row["title"], row["absent"], origin.card, origin.language)


def dying(row, origin):
    """A builder that is killed, as for want of memory."""
    os.kill(os.getpid(), 9)
    yield Drop("never")


BUILDERS = {each.__name__: each for each in (titled, telling, labelled, failing, dying)}


def prose(source: random.Random, words: int = 40) -> str:
    """Words that nobody else has."""
    return " ".join("".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) for _ in range(words))


def good_rows() -> list[dict]:
    source = random.Random(3)
    return [{"title": f"title {i}", "text": prose(source)} for i in range(400)]


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def line(**row) -> bytes:
    return json.dumps(row).encode()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """A copy of the hub with good rows, copies, near copies, and every kind of fault that a file can have."""
    folder, good = tmp_path_factory.mktemp("mirror"), good_rows()
    german = folder / "lab/titles/deu"
    write_parquet(german / "0.parquet", good[:100])
    write_parquet(german / "1.parquet", good[90:200] + [{"title": " ", "text": "x y"}, {"title": "t", "text": "ab"}])
    near = [{"title": f"another {i}", "text": row["text"] + " z"} for i, row in enumerate(good[:30])]
    write_parquet(german / "2.parquet", near)
    (german / "3-empty.parquet").write_bytes(b"")
    write_parquet(german / "4-no-rows.parquet", [], pa.schema([("title", pa.string()), ("text", pa.string())]))
    whole = (german / "0.parquet").read_bytes()
    (german / "5-cut.parquet").write_bytes(whole[: len(whole) // 2])
    write_parquet(german / "6-no-column.parquet", [{"title": "t", "body": "x"}] * 3)
    write_parquet(german / "7-type.parquet", [{"title": 5, "text": "x"}, {"title": 6, "text": "y"}])
    write_parquet(german / "8-null.parquet", [{"title": "two", "text": None}, {"title": "a null", "text": "is not 1"}])
    write_parquet(folder / "lab/titles/swh/0.parquet", good[200:300])
    lines = [line(**row, lang="yo") for row in good[300:380]]
    lines[10:10] = [b'{"title": "cut', b"[1, 2]", b"", b'{"title": "t", "text": "\\ud800 x", "lang": "yo"}',
                    line(title="huge", text="x" * 10_000_001, lang="yo"), line(title="many", text="ab cd", lang="xx"),
                    line(title="nothing", text="ab cd", lang="yo"), line(title="no", text="ab cd", lang="")]
    (folder / "lab/lines/data").mkdir(parents=True)
    (folder / "lab/lines/data/0.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines), 1))
    packed = gzip.compress(b"\n".join(line(**row, lang="yo") for row in good[380:]))
    (folder / "lab/lines/data/1-cut.jsonl.gz").write_bytes(packed[:-200])
    (folder / "lab/lines/data/2-empty.jsonl.gz").write_bytes(b"")
    return folder


def prepared(out: Path, mirror: Path, text: str = CARD, tasks: int = 3, **options) -> pipeline.CardBuild:
    """A build of the card `toy` that may start."""
    return pipeline.prepare_build(cards.parse_card("toy", text), out, tasks, mirror, **options, builders=BUILDERS)


def built_of(out: Path, mirror: Path, text: str = CARD, workers: int = 1, **options) -> pipeline.CardBuild:
    """A build that is finished."""
    build = prepared(out, mirror, text, **options)
    pipeline.run_build(build, workers=workers)
    return build


@pytest.fixture(scope="module")
def simple(mirror, tmp_path_factory) -> pipeline.CardBuild:
    """A build without duplicates removed, in this process."""
    return built_of(tmp_path_factory.mktemp("simple"), mirror, SIMPLE)


@pytest.fixture(scope="module")
def built(mirror, tmp_path_factory) -> pipeline.CardBuild:
    """The build of all that, in this process."""
    return built_of(tmp_path_factory.mktemp("out"), mirror)


def manifest(build: pipeline.CardBuild) -> dict:
    """What the build says of itself."""
    return json.loads((build.out / "manifest.json").read_text(encoding="utf8"))


def texts(build: pipeline.CardBuild) -> dict[str, list[tuple]]:
    """Language → rows of all shards."""
    return {code: shard.take(np.arange(shard.rows))
            for (_, code), shard in shards.open_card("toy", build.out).items()}


def test_the_shards_hold_every_good_row_once(built):
    good, found = [(row["title"], row["text"]) for row in good_rows()], texts(built)
    assert set(found) == {"de", "sw", "yo"}
    german = Counter(normalise(passage).removesuffix(" z") for _, passage in found["de"])
    assert set(german) == {passage for _, passage in good[:200]} | {"is not 1"} and max(german.values()) <= 2
    assert 0 <= sum(german.values()) - len(german) <= 3  # MinHash misses a near copy now and then
    assert sorted(found["sw"]) == sorted(good[200:300])
    whole, cut = set(good[300:380]), set(good[380:])
    assert whole <= set(found["yo"]) and set(found["yo"]) - whole <= cut and set(found["yo"]) - whole != cut


def test_the_manifest_counts_every_row_under_a_reason_with_card_file_and_row(built):
    said = manifest(built)
    assert said["card_sha256"] == built.card.sha256 and said["revision"] == "lab/titles@main; lab/lines@main"
    for part in said["shards"]:
        assert part["sha256"] == {name: sha256(built.out / part["folder"] / name) for name in part["sha256"]}
    assert not (built.folder / "items").exists() and not (built.folder / "shards").exists()
    assert not any(word in json.dumps(said) for word in (str(built.out), "mirror"))
    assert said["unfit"] == {
        "bad JSON line": {"und": 2}, "row over 10 MB": {"und": 1}, "text that is not Unicode": {"und": 1},
        "missing column text": {"de": 3}, "title: not string but int": {"de": 2}, "text: null": {"de": 1},
    }  # fmt: skip
    assert {reason: n for reason, n in said["dropped"].items() if reason != "near duplicate"} == {
        "empty title": {"de": 1}, "query under 2 characters": {"de": 1}, "unknown language code": {"und": 2},
        "no pair in the row": {"und": 1}, "exact duplicate": {"de": 10},
    }  # fmt: skip
    unfit, dropped = (sum(sum(each.values()) for each in said[what].values()) for what in ("unfit", "dropped"))
    assert said["read"] == said["built"] + unfit and said["made"] == said["rows"] + dropped
    assert said["read"] == 100 + 112 + 30 + 3 + 2 + 2 + 100 + 87 + said["languages"]["yo"] - 80
    assert sum(said["languages"].values()) == said["rows"] == sum(part["rows"] for part in said["shards"])
    first = said["first"]
    assert first["title: not string but int"] == "card toy, deu/7-type.parquet, row 0"
    assert first["row over 10 MB"] == "card toy, data/0.jsonl.gz, row 14"  # a blank line stands before it
    assert first["unknown language code"].startswith("card toy, data/0.jsonl.gz, row 15 (xx)")
    assert [each["file"] for each in said["unreadable"]] == ["data/1-cut.jsonl.gz", "deu/5-cut.parquet"]


def test_a_finished_build_does_nothing_and_a_changed_one_starts_anew(mirror, tmp_path):
    first = built_of(tmp_path, mirror, SIMPLE)
    before = {file: file.stat().st_mtime_ns for file in first.out.rglob("*") if file.is_file()}
    built_of(tmp_path, mirror, SIMPLE)
    assert {file: file.stat().st_mtime_ns for file in first.out.rglob("*") if file.is_file()} == before
    second = built_of(tmp_path, mirror, SIMPLE.replace("least: 2", "least: 8"), tasks=2)
    assert second.folder != first.folder and not first.folder.exists()
    assert manifest(second)["rows"] == sum(map(len, texts(second).values()))
    assert len(list(second.out.glob("*/part-*"))) == len(manifest(second)["shards"])
    assert not prepared(tmp_path, mirror, SIMPLE).finished
    shutil.copytree(mirror, tmp_path / "copy")
    copied = prepared(tmp_path, tmp_path / "copy", SIMPLE).folder
    write_parquet(tmp_path / "copy/lab/titles/swh/0.parquet", [{"title": "new", "text": "new text"}])
    assert prepared(tmp_path, tmp_path / "copy", SIMPLE).folder != copied  # a changed file is another build


@pytest.mark.parametrize("bound", ["PART", "HELD"])
def test_parts_end_at_their_size_and_stale_ones_go(mirror, tmp_path, monkeypatch, bound):
    monkeypatch.setattr(pipeline, bound, 8_000)
    build = prepared(tmp_path, mirror, SIMPLE)
    for task in range(3):
        (build.folder / f"shards/sw/part-0000{task}-0077").mkdir(parents=True)
    pipeline.run_build(build, workers=1)
    assert sum(part["language"] == "sw" for part in manifest(build)["shards"]) > 2
    assert not list(build.out.glob("sw/*-0077"))
    assert sorted(texts(build)["sw"]) == sorted((row["title"], row["text"]) for row in good_rows()[200:300])


def test_labelled_examples_keep_their_lists_and_instructions(mirror, tmp_path):
    text = HEAD + TITLES.replace("builder: titled", "builder: labelled") + "filters: {exact: {}}\n---\nMade up.\n"
    rows = texts(built_of(tmp_path, mirror, text))["sw"]
    assert all(right and wrong == ["wrong"] for _, right, wrong, _ in rows) and len(rows) == 100
    assert {query[-1] for query, _, _, told in rows if told == "Find it"} == {"3"}


@pytest.mark.parametrize(("old", "new", "said"), [
    ("builder: titled", "builder: tilted", "no builder 'tilted'"),
    ("length: {least: 2}", "lenght: {least: 2}", "filters.lenght: no such filter"),
    ("licence: none", "license: none", "license: unknown key"),
    ("languages: {de: deu, sw: swh}", "languages: {de: deu, xx: swh}", "unknown language code 'xx'"),
    ("text: string, lang", "text: strnig, lang", "strnig"),
    ("lab/titles", "lab/tiltes", "no files {language}/*.parquet"),
])  # fmt: skip
def test_a_wrong_card_stops_before_any_work_in_one_line(mirror, tmp_path, old, new, said):
    with pytest.raises(Me5Error) as error:
        prepared(tmp_path / "out", mirror, CARD.replace(old, new))
    assert said in str(error.value) and "toy" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_failing_builder_is_named_with_file_and_row_and_goes_on_once_mended(mirror, tmp_path):
    build = prepared(tmp_path, mirror, SIMPLE.replace("builder: titled", "builder: failing"))
    with pytest.raises(Me5Error) as error:
        pipeline.run_build(build, workers=1)
    assert "row 0: failing failed (KeyError" in str(error.value) and "card toy, " in str(error.value)
    pipeline.run_build(build._replace(builders=BUILDERS | {"failing": titled}), workers=1)
    assert manifest(build)["languages"]["sw"] == 100


def test_items_are_the_same_when_query_and_positives_are():
    def content(query, *positives):
        return pipeline.exact_content(Document("", "", metadata={"query": query, "positives": positives}))

    assert content("A", "b", "c") == content("a ", "B", "c")  # as `text_key` has it
    assert len({content("a", "b"), content("x", "b"), content("a", "x"), content("a", "b", "c")}) == 4


def test_a_killed_worker_does_not_hang_the_build(mirror, tmp_path):
    build = prepared(tmp_path, mirror, SIMPLE.replace("builder: titled", "builder: dying"))
    with pytest.raises(Me5Error, match="a worker was killed: too little memory"):
        pipeline.run_build(build, workers=2)


def test_two_builds_of_a_card_in_one_folder_are_refused(mirror, tmp_path):
    build = prepared(tmp_path, mirror)
    with io.locked(build.out / ".build" / ".lock"), pytest.raises(Me5Error, match="another me5 is at work in"):
        pipeline.run_build(build, workers=1)


def test_killed_builds_end_as_an_undisturbed_one(mirror, tmp_path):
    """A build with two workers, killed when some tasks are finished; ME5_KILLS=10 (`make prove`): so many, all stages.
    """
    kills, moment, killed = int(os.environ.get("ME5_KILLS", 1)), random.Random(1), 0
    card = "CARD" if kills > 1 else "SIMPLE"
    usual = built_of(tmp_path / "whole", mirror, globals()[card])
    tasks = len(list(usual.folder.glob("logs/*/completions/*")))
    code = ("import sys; from pathlib import Path; import test_pipeline as own\n"
            f"own.built_of(Path(sys.argv[1]), Path(sys.argv[2]), own.{card}, 2)")

    def start(out: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", code, out, mirror], cwd=Path(__file__).parent,
                                start_new_session=True)

    for number in range(kills):
        process, finished = start(out := tmp_path / f"killed-{number}"), moment.randrange(tasks - 1)
        while process.poll() is None and len(list(out.glob("toy/.build/*/logs/*/completions/*"))) < finished:
            time.sleep(0.01)
        time.sleep(moment.uniform(0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert start(out).wait() == 0 and hashes(out / "toy") == hashes(usual.out)
    assert killed > kills / 2


def test_sealing_may_stop_at_every_rename(simple, mirror, tmp_path, monkeypatch):
    build = prepared(tmp_path / "out", mirror, SIMPLE)
    renames = []

    def stop(*paths) -> None:
        renames.append(paths)
        if len(renames) > allowed:
            raise OSError("stopped")
        os.rename(*paths)

    monkeypatch.setattr(os, "replace", stop)  # the renames of all writers are counted
    allowed, stops = 0, 0
    while not build.finished and stops < 100:
        renames.clear()
        allowed, stops = allowed + 1, stops + 1
        try:
            pipeline.run_build(build, workers=1)
        except Me5Error as error:
            assert "not finished" in str(error) or "cannot be written (" in str(error)
    assert stops > 5 and hashes(build.out) == hashes(simple.out)


def test_files_are_dealt_by_size_and_none_twice():
    source = random.Random(1)
    files = [hub.HubFile(0, f"{i}", "", source.randint(1, 1_000)) for i in range(200)]
    dealt = pipeline.share(files, 7)
    assert sorted(file for share in dealt for file in share) == sorted(files)
    loads = [sum(file.size for file in share) for share in dealt]
    assert max(loads) - min(loads) <= 1_000


SBATCH = """#!{python}
import os, re, subprocess, sys
script, options = sys.argv[-1], sys.argv[1:-1]
text = open(script).read()
with open(os.environ["STUB_LOG"], "a") as log:
    log.write(" ".join(options) + "\\n" + text + "\\n=====\\n")
first, last = re.search(r"--array=(\\d+)-(\\d+)", text).groups()
for index in range(int(first), int(last) + 1) if "launch_pickled_pipeline" in text else ():
    env = os.environ | {{"SLURM_ARRAY_TASK_ID": str(index), "SLURM_NODELIST": "node1", "SLURM_JOB_ID": "7"}}
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
print("Submitted batch job", len(open(os.environ["STUB_LOG"]).read().split("=====")))
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do if [[ $1 == -n ]]; then shift; fi; shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Stubs of sbatch (runs the script once per array index, at once), srun and scontrol; the log of what they got."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stubs = {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "scontrol": "#!/bin/bash\necho node1\n"}
    for name, text in stubs.items():
        (folder / name).write_text(text, encoding="utf8")
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "sbatch.log"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    return tmp_path / "sbatch.log"


def test_slurm_builds_the_same(mirror, tmp_path, slurm):
    build = prepared(tmp_path / "out", mirror, SIMPLE, tasks=1)
    job = pipeline.run_build(build, "slurm", slurm={
        "time": "01:30:00", "partition": "short", "mem_per_cpu_gb": 3, "env_command": "export MARK=1",
        "sbatch_args": {"account": "lab7", "qos": "long"}})
    log = slurm.read_text(encoding="utf8")
    jobs = [part for part in log.split("=====") if "launch_pickled_pipeline" in part]
    assert len(jobs) == 3 and job
    assert hashes(build.out) == hashes(built_of(tmp_path / "usual", mirror, SIMPLE, tasks=1).out)
    for wanted in ("--time=01:30:00", "--partition=short", "--account=lab7", "--mem-per-cpu=3G", "--qos=long",
                   "export MARK=1", "--array=0-0"):
        assert wanted in jobs[0]
    assert "--qos=normal" not in log and all("--dependency=afterok:" in part for part in jobs[1:])


def test_slurm_needs_a_partition_and_a_login_node(mirror, tmp_path, slurm, monkeypatch):
    build = prepared(tmp_path / "out", mirror)
    with pytest.raises(Me5Error, match="--partition"):
        pipeline.run_build(build, "slurm")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Me5Error, match="no sbatch here"):
        pipeline.run_build(build, "slurm")
    with pytest.raises(Me5Error, match="choose local, slurm or ray"):
        pipeline.run_build(build, "sge")


def test_ray_builds_the_same(simple, mirror, tmp_path, monkeypatch):
    """By `make prove` on a cluster of this machine; else its tasks, as Ray pickles them, in this process."""
    ray = pytest.importorskip("ray")

    def run(self) -> None:
        for rank in self.get_incomplete_ranks():
            ray.cloudpickle.loads(ray.cloudpickle.dumps(self))._run_for_rank(rank, 1)

    if "ME5_KILLS" in os.environ:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    else:
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(pipeline.RayPipelineExecutor, "run", run)
    build = prepared(tmp_path, mirror, SIMPLE)
    pipeline.run_build(build, "ray", memory=0.2)
    ray.shutdown()
    assert hashes(build.out) == hashes(simple.out)


def mixture(*words: object) -> str:
    """`me5 mixture …` in this process; its output."""
    from me5lib.cli import data

    done = CliRunner().invoke(data.app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_build_and_show_from_the_command_line(tmp_path):
    copy, out = tmp_path / "copy", tmp_path / "out"
    for entry in cards.load_card("nllb").hub:
        fixtures_hub.write_repository(copy, entry, 40, 2)
    said = mixture("build", "--card", "nllb", "--from", copy / "datasets", "--out", out, "--tasks", 2, "--workers", 1)
    rows = json.loads((out / "nllb/manifest.json").read_text())["rows"]
    assert f"nllb: {rows:,} rows in" in said and "rows read" in said
    table = mixture("show", "--out", out)
    assert "stage 1 (Table 1)" in table and "160,000,000" in table and "not built" in table
    lines = (out / "mixture.csv").read_text(encoding="utf8").splitlines()
    assert sum(int(each.split(",")[3]) for each in lines[1:]) == rows


def test_starved_languages_are_warned_of():
    from me5lib.cli import data

    card = cards.parse_card("toy", CARD)
    found = {"toy": {"de": 4_000_000, "sw": 1_000_000, "yo": 1}}

    def shares(given: dict, known: tuple[str, ...] = ("toy",), temperature: float = 0.5):
        table = hub.mixture_table(given, dict.fromkeys(known, card), temperature)
        return table, table.groupby("language").share.sum()

    table, share = shares(found)
    assert share["de"] == pytest.approx(2000 / 3001) and share.sum() == pytest.approx(1)
    said = data.stage_table(table)
    assert any("starved languages" in each and "yo 0.033%" in each for each in said)
    assert "WARNING: toy has no rows in en" in said
    _, share = shares(found | {"other": {"ha": 7}}, ("toy", "other"))
    assert share["ha"] == pytest.approx(0.5) and share["de"] == pytest.approx(1000 / 3001)
    assert not any("starved" in each for each in data.stage_table(shares(found, temperature=0.0)[0]))
    assert shares({})[0].empty
