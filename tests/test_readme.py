"""Every command that the READMEs print is one that `me5` takes: its name, its options and their values."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from me5lib.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
GROUP = typer.main.get_command(app)


def commands(page: str) -> list[str]:
    """The arguments of `me5` in the indented lines of a page; several on a line stand apart by spaces or a dot."""
    lines = (line for line in (ROOT / page).read_text(encoding="utf8").splitlines() if line.startswith("    "))
    parts = [part for line in lines for part in re.split(r" {2,}| · ", line.split("#")[0].strip())]
    runs = (re.fullmatch(r"(?:\S*me5|torchrun .*-m me5lib) (.*?)(?: > \S+)?", part) for part in parts)
    return [run[1] for run in runs if run]


ALL = [(page, line) for page in ("README.md", "notebooks/README.md", "data_cards/README.md") for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), ALL, ids=[line for _, line in ALL])
def test_a_printed_command_parses(page, line):
    group, words = GROUP, shlex.split(line)
    while isinstance(group, typer.main.TyperGroup):
        name, group, words = group.resolve_command(typer.Context(group), words)
        assert group is not None, f"{page}: no command {name}"
    group.make_context(line, words)  # raises for an option that is not there, or a value of another type


def test_the_page_is_read():
    some = {"pretrain", "packs --export DIR", "mixture show", "run --from FILE"}
    assert len(ALL) > 30 and some <= {line for _, line in ALL}


def test_what_is_no_option_is_seen():
    with pytest.raises(Exception, match="No such option"):
        test_a_printed_command_parses("README.md", "pretrain --scal base")
