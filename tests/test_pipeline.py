"""Building at scale: what ends in the shards, how everything else is counted, kills, executors, and bad input.

Takes about 90 seconds on two slow cores: it kills real process groups and starts a real Ray.
"""

import gzip
import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fixtures_hub
import numpy as np
import prove_build
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback import Loopback
from typer.testing import CliRunner

from me5lib.data import cards, inputs, manifests, pipeline, shards
from me5lib.data.origin import Drop
from me5lib.io import Me5Error, sha256
from me5lib.pairs import Labelled, Pair, normalise

ROOT = Path(__file__).parents[1]
CARD = """---
name: toy
title: Made up
role: train
hub:
  - repository: lab/titles
    files: "{language}/*.parquet"
    languages: {de: deu, sw: swh}
    columns: {title: string, text: string}
    read_from: unverified
    builder: titled
  - repository: lab/lines
    files: "data/*.jsonl.gz"
    columns: {title: string, text: string, lang: string}
    read_from: unverified
    builder: telling
paper: {table: 1, rows: 1000, pair: title and text}
homepage: https://example.org
licence: none
translated_by: nobody
languages: [de, sw, yo]
pair: title → text
query_prefix: "query: "
passage_prefix: "passage: "
filters:
  length: {least: 2}
  exact: {}
  near: {threshold: 0.8}
faults: []
---
Made up by the tests.
"""


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


BUILDERS = {"titled": titled, "telling": telling, "labelled": labelled, "failing": failing}


def prose(source: random.Random, words: int = 40) -> str:
    """Words that nobody else has."""
    return " ".join("".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) for _ in range(words))


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema | None = None) -> None:
    """A Parquet file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def write_lines(path: Path, lines: list[bytes]) -> None:
    """A packed file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines), 1))


def line(**row) -> bytes:
    """A line of JSON."""
    return json.dumps(row, ensure_ascii=False).encode("utf8")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """A copy of the hub with good rows, copies, near copies, and every kind of fault that a file can have."""
    folder, source = tmp_path_factory.mktemp("mirror"), random.Random(3)
    good = [{"title": f"title {i}", "text": prose(source)} for i in range(400)]
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
    lines = [line(title=row["title"], text=row["text"], lang="yo") for row in good[300:380]]
    lines[10:10] = [b'{"title": "cut', b"[1, 2]", b"", b'{"title": "t", "text": "\\ud800 x", "lang": "yo"}',
                    line(title="huge", text="x" * 50_000_000, lang="yo"), line(title="many", text="ab cd", lang="xx"),
                    line(title="nothing", text="ab cd", lang="yo"), line(title="no", text="ab cd", lang="")]
    write_lines(folder / "lab/lines/data/0.jsonl.gz", lines)
    packed = gzip.compress(b"".join(line(title=r["title"], text=r["text"], lang="yo") + b"\n" for r in good[380:]))
    (folder / "lab/lines/data/1-cut.jsonl.gz").write_bytes(packed[:-200])
    (folder / "lab/lines/data/2-empty.jsonl.gz").write_bytes(b"")
    return folder


def prepared(out: Path, mirror: Path, text: str = CARD, tasks: int = 3, **options) -> pipeline.Prepared:
    """A build of the card `toy` that may start."""
    given = pipeline.Options(tasks, mirror, **options)
    return pipeline.prepare(cards.parse("toy", text), out, given, BUILDERS)


@pytest.fixture(scope="module")
def built(mirror, tmp_path_factory) -> pipeline.Prepared:
    """The build of all that, in this process."""
    found = prepared(tmp_path_factory.mktemp("out"), mirror)
    pipeline.run(found, workers=1, progress=False)
    return found


def manifest(build: pipeline.Prepared) -> dict:
    """What the build says of itself."""
    return json.loads((build.out / "manifest.json").read_text(encoding="utf8"))


def texts(build: pipeline.Prepared) -> dict[str, list[tuple]]:
    """Language → rows of all shards, each hashed against its manifest."""
    found: dict[str, list[tuple]] = {}
    for part in sorted(build.out.glob("*/part-*")):
        shard = shards.open_shard(part)
        assert {name: sha256(part / name) for name in shard.manifest.sha256} == shard.manifest.sha256
        found.setdefault(part.parent.name, []).extend(shard.take(np.arange(shard.rows)))
    return found


def hashes(build: pipeline.Prepared) -> dict[str, str]:
    """Path → SHA-256 of what a user sees of a build."""
    return {str(file.relative_to(build.out)): sha256(file) for file in build.out.rglob("*")
            if file.is_file() and ".build" not in file.parts}


def test_the_shards_hold_every_good_row_once(built):
    source = random.Random(3)
    good = [(f"title {i}", prose(source)) for i in range(400)]
    found = texts(built)
    assert set(found) == {"de", "sw", "yo"}
    german = Counter(normalise(passage).removesuffix(" z") for _, passage in found["de"])
    usual = {passage for _, passage in good[:200]} | {"is not 1"}
    assert set(german) == usual and max(german.values()) <= 2
    assert 0 <= sum(german.values()) - len(german) <= 3  # MinHash misses a near copy now and then
    assert sorted(found["sw"]) == sorted(good[200:300])
    whole, cut = set(good[300:380]), set(good[380:])
    assert whole <= set(found["yo"]) and set(found["yo"]) - whole <= cut and set(found["yo"]) - whole != cut


def test_every_row_is_kept_or_counted_under_a_reason(built):
    said = manifest(built)
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
    cut = said["languages"]["yo"] - 80
    assert said["read"] == 100 + 112 + 30 + 3 + 2 + 2 + 100 + 87 + cut
    assert sum(said["languages"].values()) == said["rows"] == sum(part["rows"] for part in said["shards"])


def test_faults_are_named_with_card_file_and_row(built):
    first = manifest(built)["first"]
    assert first["title: not string but int"] == "card toy, deu/7-type.parquet, row 0"
    assert first["text: null"] == "card toy, deu/8-null.parquet, row 0"
    assert first["bad JSON line"] == "card toy, data/0.jsonl.gz, row 10"
    assert first["row over 10 MB"] == "card toy, data/0.jsonl.gz, row 14"  # a blank line stands before it
    assert first["unknown language code"].startswith("card toy, data/0.jsonl.gz, row 15 (xx)")
    assert [each["file"] for each in manifest(built)["unreadable"]] == ["data/1-cut.jsonl.gz", "deu/5-cut.parquet"]
    log = "".join(file.read_text(encoding="utf8") for file in built.folder.glob("logs/00-pairs/logs/*"))
    assert "card toy, deu/6-no-column.parquet, row 0: missing column text" in log


def test_the_manifest_says_what_it_was_built_of(built):
    said, card = manifest(built), built.card
    assert said["card_sha256"] == card.sha256 and said["revision"] == "lab/titles@main; lab/lines@main"
    for part in said["shards"]:
        for name, known in part["sha256"].items():
            assert sha256(built.out / part["folder"] / name) == known
    assert not (built.folder / "items").exists() and not (built.folder / "shards").exists()
    assert not any(word in json.dumps(said) for word in (str(built.out), "mirror"))


def test_the_same_build_elsewhere_by_two_processes_has_the_same_bytes(built, mirror, tmp_path):
    again = prepared(tmp_path, mirror)
    pipeline.run(again, workers=2, progress=False)
    assert hashes(again) == hashes(built)


def test_a_finished_build_does_nothing_and_a_changed_one_starts_anew(mirror, tmp_path):
    small = CARD.replace("  exact: {}\n  near: {threshold: 0.8}\n", "")
    first = prepared(tmp_path, mirror, small)
    pipeline.run(first, workers=1, progress=False)
    before = {file: file.stat().st_mtime_ns for file in first.out.rglob("*") if file.is_file()}
    pipeline.run(prepared(tmp_path, mirror, small), workers=1, progress=False)
    assert {file: file.stat().st_mtime_ns for file in first.out.rglob("*") if file.is_file()} == before
    assert prepared(tmp_path, mirror, small.replace("least: 2", "least: 8")).folder != first.folder
    second = prepared(tmp_path, mirror, small.replace("least: 2", "least: 8"), tasks=2)
    assert second.folder != first.folder
    pipeline.run(second, workers=1, progress=False)
    assert not first.folder.exists() and manifest(second)["rows"] < sum(map(len, texts(second).values())) + 1
    assert len(list(second.out.glob("*/part-*"))) == len(manifest(second)["shards"])
    assert not prepared(tmp_path, mirror, small).finished


def test_a_changed_file_is_another_build(mirror, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(mirror, copy)
    before = prepared(tmp_path / "out", copy).folder
    assert prepared(tmp_path / "out", copy).folder == before
    write_parquet(copy / "lab/titles/swh/0.parquet", [{"title": "new", "text": "new text"}])
    assert prepared(tmp_path / "out", copy).folder != before


def test_limit_reads_the_head_of_every_file(mirror, tmp_path):
    some = prepared(tmp_path, mirror, CARD.replace("  near: {threshold: 0.8}\n", ""), limit=26)
    pipeline.run(some, workers=1, progress=False)
    assert some.per_file == 2 and manifest(some)["read"] <= 26
    assert {"title 200", "title 201"} == {query for query, _ in texts(some)["sw"]}


def test_parts_end_at_their_size(mirror, tmp_path, monkeypatch):
    from me5lib.data import steps

    monkeypatch.setattr(steps, "PART", 8_000)
    build = prepared(tmp_path, mirror, CARD.replace("  exact: {}\n  near: {threshold: 0.8}\n", ""))
    pipeline.run(build, workers=1, progress=False)
    assert sum(part["language"] == "sw" for part in manifest(build)["shards"]) > 2
    source = random.Random(3)
    assert sorted(texts(build)["sw"]) == sorted([(f"title {i}", prose(source)) for i in range(400)][200:300])


def test_all_languages_together_stay_under_a_bound_and_stale_parts_go(tmp_path, monkeypatch):
    from me5lib.data import steps

    monkeypatch.setattr(steps, "HELD", 3_000)
    for stale in ("de/part-00004-0077", "de/part-00005-0077"):
        (tmp_path / "shards" / stale).mkdir(parents=True)
    codes = ("de", "en", "sw")
    given = [steps.document(Pair("q", f"{i:0100d}", "toy", codes[i % 3])) for i in range(300)]
    list(steps.Shards("toy", str(tmp_path / "shards"), str(tmp_path / "counts")).run(iter(given), rank=4))
    parts = {f"{part.parent.name}/{part.name}" for part in tmp_path.glob("shards/*/part-*")}
    assert len(parts) >= 10 and "de/part-00004-0077" not in parts and "de/part-00005-0077" in parts


def test_labelled_examples_keep_their_lists_and_instructions(mirror, tmp_path):
    text = CARD.replace("builder: titled", "builder: labelled").replace("  near: {threshold: 0.8}\n", "")
    head, _, tail = text.partition("  - repository: lab/lines")
    build = prepared(tmp_path, mirror, head + tail[tail.index("paper:"):])
    pipeline.run(build, workers=1, progress=False)
    rows = texts(build)["sw"]
    assert all(right and wrong == ["wrong"] for _, right, wrong, _ in rows) and len(rows) == 100
    assert {query[-1] for query, _, _, told in rows if told == "Find it"} == {"3"}


@pytest.mark.parametrize(("old", "new", "said"), [
    ("builder: titled", "builder: tilted", "builder 'tilted' is none"),
    ("length: {least: 2}", "lenght: {least: 2}", "filters.lenght: no such filter"),
    ("length: {least: 2}", "length: {lest: 2}", "filters.length.lest: no such option"),
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
    build = prepared(tmp_path, mirror, CARD.replace("builder: titled", "builder: failing"))
    with pytest.raises(Me5Error) as error:
        pipeline.run(build, workers=2, progress=False)
    assert "row 0: failing failed (KeyError" in str(error.value) and "card toy, " in str(error.value)
    mended = pipeline.Prepared(**build._asdict() | {"builders": [(titled, {}), (telling, {})]})
    pipeline.run(mended, workers=1, progress=False)
    assert manifest(mended)["languages"]["sw"] == 100


def dying(row, origin):
    """A builder that is killed, as for want of memory."""
    os.kill(os.getpid(), 9)
    yield Drop("never")


def test_a_killed_worker_does_not_hang_the_build(mirror, tmp_path):
    build = pipeline.prepare(cards.parse("toy", CARD), tmp_path, pipeline.Options(3, mirror), BUILDERS | {
        "titled": dying})
    with pytest.raises(Me5Error, match="a worker was killed: too little memory"):
        pipeline.run(build, workers=2, progress=False)


def test_two_builds_of_a_card_in_one_folder_are_refused(mirror, tmp_path):
    from filelock import FileLock

    build = prepared(tmp_path, mirror)
    (build.out / ".build").mkdir(parents=True)
    with FileLock(build.out / ".build" / "lock"), pytest.raises(Me5Error, match="another process builds toy"):
        pipeline.run(build, workers=1, progress=False)


def test_three_kills_end_as_an_undisturbed_build(tmp_path):
    lines = prove_build.prove(tmp_path, kills=3, seed=2, alone=False)
    assert len(lines) == 3


def test_sealing_may_stop_at_every_rename(mirror, tmp_path, monkeypatch):
    from me5lib.data import seal

    small = CARD.replace("  exact: {}\n  near: {threshold: 0.8}\n", "")
    usual, build = prepared(tmp_path / "usual", mirror, small), prepared(tmp_path / "out", mirror, small)
    pipeline.run(usual, workers=1, progress=False)
    parts, renames = len(manifest(usual)["shards"]), []

    def stop(*paths) -> None:
        renames.append(paths)
        if len(renames) > allowed:
            raise OSError("stopped")
        os.rename(*paths)

    monkeypatch.setattr(seal.os, "replace", stop)  # `os` is one module: the renames of all writers are counted
    allowed, stops = 0, 0
    while not build.finished and stops < 100:
        renames.clear()
        allowed, stops = allowed + 1, stops + 1
        try:
            pipeline.run(build, workers=1, progress=False)
        except Me5Error as error:
            source, target = map(Path, renames[-1])
            by_io = source.name == f".{target.name}.part"  # a JSON file, which says itself that it could not be written
            assert (f"{target} cannot be written (" if by_io else "not finished") in str(error)
    assert stops > parts and hashes(build) == hashes(usual)


def test_files_are_dealt_by_size_and_none_twice():
    source = random.Random(1)
    files = [inputs.Input(0, f"{i}", "", source.randint(1, 1_000), "") for i in range(200)]
    dealt = inputs.share(files, 7)
    assert sorted(file for share in dealt for file in share) == sorted(files)
    loads = [sum(file.size for file in share) for share in dealt]
    assert max(loads) - min(loads) <= 1_000


def test_zstd_lines_are_read(tmp_path):
    hub = cards.Hub(repository="a/b", files="x.jsonl.zst", language="de", columns={"t": "string"}, builder="b",
                    read_from="unverified")
    fixtures_hub.write(tmp_path / "x.jsonl.zst", hub, [{"t": f"ä{i}" * 50} for i in range(5_000)])
    with (tmp_path / "x.jsonl.zst").open("rb") as stream:
        rows = list(inputs.rows(stream, "x.jsonl.zst", hub.columns))
    assert rows == [(i, {"t": f"ä{i}" * 50}) for i in range(5_000)]
    cut = tmp_path / "cut.jsonl.zst"
    cut.write_bytes((tmp_path / "x.jsonl.zst").read_bytes()[:-10])
    with cut.open("rb") as stream, pytest.raises(inputs.Broken):
        list(inputs.rows(stream, "cut.jsonl.zst", hub.columns))


SBATCH = """#!{python}
import os, re, subprocess, sys
script, options = sys.argv[-1], sys.argv[1:-1]
text = open(script).read()
with open(os.environ["STUB_LOG"], "a") as log:
    log.write(" ".join(options) + "\\n" + text + "\\n=====\\n")
first, last = re.search(r"--array=(\\d+)-(\\d+)", text).groups()
for index in range(int(first), int(last) + 1):
    env = os.environ | {{"SLURM_ARRAY_TASK_ID": str(index), "SLURM_NODELIST": "node1", "SLURM_JOB_ID": "7"}}
    for option in options:
        if option.startswith("--export="):
            env |= dict(part.split("=") for part in option.removeprefix("--export=").split(",") if "=" in part)
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
print("Submitted batch job", len(open(os.environ["STUB_LOG"]).read().split("=====")))
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do if [[ $1 == -n ]]; then shift; fi; shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo node1
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Stubs of sbatch (runs the script once per array index, at once), srun and scontrol; the log of what they got."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text, encoding="utf8")
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "sbatch.log"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    return tmp_path / "sbatch.log"


def test_slurm_gets_a_chain_of_array_jobs_that_do_the_work(built, mirror, tmp_path, slurm):
    from me5lib.data.executors import Slurm

    build = prepared(tmp_path / "out", mirror)
    asked = Slurm("01:30:00", "short", "lab7", 3, "export MARK=1", {"qos": "long"})
    job = pipeline.run(build, "slurm", slurm=asked, progress=False)
    log = slurm.read_text(encoding="utf8")
    jobs = [part for part in log.split("=====") if "launch_pickled_pipeline" in part]
    assert len(jobs) == 7 and job and hashes(build) == hashes(built)
    for wanted in ("--time=01:30:00", "--partition=short", "--account=lab7", "--mem-per-cpu=3G", "--qos=long",
                   "export MARK=1", "--array=0-2"):
        assert wanted in jobs[0]
    assert "--qos=normal" not in log and all("--dependency=afterok:" in part for part in jobs[1:])


def test_slurm_needs_a_partition_and_a_login_node(mirror, tmp_path, slurm, monkeypatch):
    build = prepared(tmp_path / "out", mirror)
    with pytest.raises(Me5Error, match="--partition"):
        pipeline.run(build, "slurm", progress=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Me5Error, match="no sbatch here"):
        pipeline.run(build, "slurm", progress=False)


def test_ray_builds_the_same(mirror, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    text = CARD.replace("  near: {threshold: 0.8}\n", "")  # seven actors, each a process: Ray takes its time
    usual = prepared(tmp_path / "usual", mirror, text, tasks=2)
    pipeline.run(usual, workers=1, progress=False)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        build = prepared(tmp_path / "ray", mirror, text, tasks=2)
        pipeline.run(build, "ray", memory=0.2, progress=False)
    finally:
        ray.shutdown()
    assert hashes(build) == hashes(usual)


HUB = """
import json, sys, time
from pathlib import Path
from test_pipeline import BUILDERS, CARD
from me5lib.data import cards, inputs, pipeline
if __name__ == "__main__":
    build = pipeline.prepare(cards.parse("toy", CARD), Path(sys.argv[1]), pipeline.Options(2), BUILDERS)
    pipeline.run(build, workers=int(sys.argv[2]), progress=False)
"""


def test_rows_come_from_a_hub_at_one_commit_and_survive_its_failures(mirror, tmp_path, unplugged):
    (tmp_path / "root").mkdir()
    shutil.copytree(mirror, tmp_path / "root/datasets")
    (tmp_path / "work.py").write_text(HUB, encoding="utf8")
    with Loopback(tmp_path / "root", fails=lambda n: 503 if n % 7 == 0 else 0) as hub:
        path = os.pathsep.join([unplugged["PYTHONPATH"], str(Path(__file__).parent)])
        env = os.environ | unplugged | {"HF_ENDPOINT": hub.endpoint, "PYTHONPATH": path, "HF_HUB_OFFLINE": "0",
                                        "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run([sys.executable, str(tmp_path / "work.py"), str(tmp_path / "out"), "2"], env=env,
                              capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / "out/toy/manifest.json").read_text(encoding="utf8"))
    local = prepared(tmp_path / "local", mirror, tasks=2)
    pipeline.run(local, workers=1, progress=False)
    assert re.fullmatch("[0-9a-f]{40}", said["repositories"][0]["revision"])
    assert said["shards"] == manifest(local)["shards"] and said["first"] == manifest(local)["first"]


@pytest.fixture
def command(tmp_path):
    """`me5 mixture …` in this process; its output."""
    from me5lib.cli import data

    def run(*arguments: str) -> str:
        found = CliRunner().invoke(data.app, list(arguments), catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    return run


def hub_files(folder: Path, *names: str) -> Path:
    """Random rows of these cards, as a copy of the hub."""
    for name in names:
        for hub in cards.load(name).hub:
            fixtures_hub.write_repository(folder, hub, 40, 2)
    return folder


def test_build_and_show_from_the_command_line(command, tmp_path, mirror):
    copy, out = hub_files(tmp_path / "copy", "squad", "nllb"), tmp_path / "out"
    given = ("--from", str(copy), "--out", str(out), "--tasks", "2", "--workers", "1")
    said = command("build", "--card", "nllb", *given)
    rows = json.loads((out / "nllb/manifest.json").read_text())["rows"]
    assert f"nllb: {rows:,} rows in" in said and "rows read" in said
    table = command("show", "--out", str(out))
    assert "stage 1 (Table 1)" in table and "160,000,000" in table and "not built" in table
    assert (out / "mixture-1.png").stat().st_size > 10_000
    lines = (out / "mixture.csv").read_text(encoding="utf8").splitlines()
    assert sum(int(line.split(",")[3]) for line in lines[1:]) == rows


def test_starved_languages_are_warned_of(tmp_path):
    from me5lib.cli import data

    card = cards.parse("toy", CARD)
    found = {"toy": {"rows": 0, "languages": {"de": 4_000_000, "sw": 1_000_000, "yo": 1}}}
    found["toy"]["rows"] = sum(found["toy"]["languages"].values())
    stage, = manifests.mixtures(found, {"toy": card}, temperature=0.5)
    assert stage.languages["de"][1] == pytest.approx(2000 / 3001) and list(stage.starved) == ["yo"]
    assert "starved languages" in data._table(stage)[-1] and "yo 0.033%" in data._table(stage)[-1]
    other = {"rows": 7, "languages": {"ha": 7}}
    both, = manifests.mixtures(found | {"other": other}, {"toy": card, "other": card}, temperature=0.5)
    assert both.languages["ha"][1] == pytest.approx(0.5) and both.languages["de"][1] == pytest.approx(1000 / 3001)
    evened, = manifests.mixtures(found, {"toy": card}, temperature=0.0)
    assert not evened.starved


class Failing(io.BytesIO):
    """A file whose connection breaks after so many bytes."""

    def __init__(self, content: bytes, after: int, error: Exception):
        super().__init__(content)
        self.after, self.error = after, error

    def read(self, size: int = -1) -> bytes:
        """The next bytes, or the error."""
        if self.tell() >= self.after:
            raise self.error
        return super().read(size)

    def readinto(self, buffer) -> int:
        """As `read`."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), TimeoutError("slow"), OSError(5, "I/O error")])
@pytest.mark.parametrize("name", ["deu/0.parquet", "../lines/data/0.jsonl.gz"])
def test_a_broken_connection_is_no_broken_file(mirror, name, error):
    content = (mirror / "lab/titles" / name).read_bytes()
    with pytest.raises(type(error)) as found:
        list(inputs.rows(Failing(content, 4, error), name, {"title": "string", "text": "string"}))
    assert not isinstance(found.value, inputs.Broken)
