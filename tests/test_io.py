"""What is written is there whole or not at all: a folder that replaces another, killed at each of its steps."""

import pytest

from me5lib import io

SEAMS = ("rename", "remove", "sync")


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("operation", range(5))
def test_a_kill_while_a_folder_replaces_another_leaves_one_of_them_whole(operation, tmp_path, monkeypatch):
    final, beside, calls = tmp_path / "stage", tmp_path / ".stage.part", []
    for folder, content in ((final, "old"), (beside, "new")):
        folder.mkdir()
        (folder / "config.json").write_text(content, encoding="utf8")

    def killing(seam):
        def call(*paths):
            if len(calls) == operation:
                raise Killed
            calls.append(seam)
            seam(*paths)

        return call

    for name in SEAMS:
        monkeypatch.setattr(io, name, killing(getattr(io, name)))
    with pytest.raises(Killed):
        io.replace(beside, final)
    left = {path.parent.name: path.read_text(encoding="utf8") for path in tmp_path.glob("*/config.json")}
    assert "old" in left.values() or left.get(final.name) == "new"
    assert "new" in left.values()  # and what was made is not lost either
    monkeypatch.undo()
    if beside.exists():
        io.replace(beside, final)  # the same again goes on from whatever was left
        assert (final / "config.json").read_text(encoding="utf8") == "new"
    assert [path.name for path in tmp_path.iterdir() if path.name != final.name] in ([], [".stage.part.old"])
