"""The `me5` command: options only; the work is done in the rooms that the commands name. What its files share is here.

What a user can mend is one line on stderr and exit code 2; a notebook that failed gives 1; an interrupt gives 130.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

import typer
from typer.core import TyperGroup

from me5lib import io
from me5lib.io import Me5Error

FIRST_RANK = 20.0  # ours: seconds that another rank waits before it exits: a launcher ends all, and rank 0 speaks first

ScaleName = Annotated[str, typer.Option("--scale", help="smoke (seconds) or tiny (minutes), both offline.")]
Seed = Annotated[int, typer.Option(callback=io.valid_seed, help="Seed of everything random.")]
Out = Annotated[str, typer.Option(help="Folder of the run (default: runs/<scale>/seed-<n>, or under ME5_OUT).")]
Set = Annotated[list[str], typer.Option("--set", help="A setting, as train.steps=100; may be given again.")]


class OfRank(Me5Error):
    """An error of a rank that is not the first one: said, though that rank is otherwise quiet."""


class OneLineErrors(TyperGroup):
    """A group of commands that turns `Me5Error` and an interrupt into one line."""

    def invoke(self, ctx: typer.Context) -> object:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Me5Error as error:
            if not speaks():
                time.sleep(FIRST_RANK)
            if speaks() or isinstance(error, OfRank):
                print(f"me5: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            if speaks():
                said = "interrupted; what is finished is kept, the same command goes on from there"
                print(f"me5: {said}", file=sys.stderr)
            raise typer.Exit(130) from None


def speaks() -> bool:
    """Whether this process is the one of its launch that talks."""
    return os.environ.get("RANK", "0") == "0"


def split_names(text: str) -> list[str]:
    """The names of an option that takes several, as a,b,c; blanks around them and empty ones are none."""
    return [name.strip() for name in text.split(",") if name.strip()]
