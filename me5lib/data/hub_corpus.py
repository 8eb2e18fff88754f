"""What a scale of the hub trains on: shards that `me5 mixture build` made, else drawings that `me5 fetch` made.

The same face as `corpus.Corpus`, without evaluation sets of its own: those of the paper's scales come from mteb.

Cost: opening reads the manifests and footers; the labelled examples are held in memory, a few GB at the paper's size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from me5lib.data import cards, hub, pipeline, shards
from me5lib.data.deal import largest_remainder
from me5lib.data.mixture import Mixture
from me5lib.pairs import Labelled, text_key
from me5lib.places import Me5Error

if TYPE_CHECKING:
    from me5lib.scale import Scale, Stage

DEV_SHARE = 1 / 1_000  # ours: labelled examples kept out of stage 2 to judge its teacher by; some 1,600 of the paper's


class HubCorpus:
    """The sources of a hub scale, memory-mapped. `fingerprint` names exactly these shards."""

    def __init__(self, dial: Scale, mixture: Path | None = None) -> None:
        """`mixture`: where `me5 mixture build` put its shards (None: where it does unless told otherwise).

        Raises `Me5Error` where neither the built shards nor the drawings of all sources are there, and for a given
        `mixture` that holds nothing of this scale.
        """
        self.scale, self._mixture = dial, (mixture or pipeline.home()).expanduser().resolve()
        self._built = _streams(self._mixture) if mixture or self._mixture.is_dir() else {}
        names = {source for source, _ in self._built}
        if mixture and not names & {*dial.data.sources, *dial.data.labelled}:
            raise Me5Error(f"{mixture} holds no card of scale {dial.name}: me5 mixture build "
                           f"--card {dial.data.sources[0]} --out {mixture}")
        self.built = self._of_sources(names)
        self.shards = self.built or hub.open_hub(dial)

    def _of_sources(self, names: set[str]) -> dict[tuple[str, str], shards.Joined]:
        """The built streams of stage 1; empty where none of them is built. `Me5Error` where some are lacking."""
        found = {key: stream for key, stream in self._built.items() if key[0] in self.scale.data.sources}
        missing = [name for name in self.scale.data.sources if name not in names]
        if found and missing:
            raise Me5Error(f"{self._mixture} lacks {', '.join(missing)}: me5 mixture build --card {missing[0]} "
                           f"--out {self._mixture}")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the shards' files."""
        known = [[*key, shard.rows, _marks(shard)] for key, shard in sorted(self.shards.items())]
        return hashlib.blake2b(json.dumps(known).encode("utf8"), digest_size=8).hexdigest()

    def mixture(self, dial: Scale, seed: int, stage: Stage | None = None) -> Mixture:
        """The pairs of stage 1: sources by the paper's counts. Languages by the scale's temperature, unless the drawing
        has applied it already."""
        stage = stage or dial.train
        temperature = dial.data.language_temperature if self.built else 1.0
        return Mixture(self.shards, steps=stage.steps, batch=stage.batch, seed=seed,
                       weights=cards.weights(dial.data.sources), temperature=temperature,
                       homogeneous=dial.data.homogeneous)

    def labelled(self, part: str = "stage 2") -> list[Labelled]:
        """The examples of stage 2, but for a thousandth (by hash of the query) that `part="dev"` gives."""
        edge = int(DEV_SHARE * 2**64) - 2**63
        return [row for row in self._labelled if (text_key(row.query) < edge) == (part == "dev")]

    @cached_property
    def _labelled(self) -> list[Labelled]:
        """Of each set what was built, as many rows as the paper took; of the others what was drawn."""
        names, built = self.scale.data.labelled, {source for source, _ in self._built}
        found = hub.labelled(self.scale, [name for name in names if name not in built])
        for name in names:
            own = {code: stream for (source, code), stream in self._built.items() if source == name}
            rows = [stream.rows for stream in own.values()]
            most = shared(rows, self.scale.data.language_temperature, hub.wanted(self.scale, name))
            for (code, stream), n in zip(own.items(), most, strict=True):
                found += hub.examples(name, code, stream.read(np.sort(shards.shuffled(stream.rows, 0)[:n])))
        return found

    def tasks(self) -> list:
        """None: there is nothing to look at during training but the loss."""
        return []


def shared(rows: Sequence[int], temperature: float, total: int) -> list[int]:
    """`total` rows dealt to streams by `rows` ** temperature; none gets more than it has, the others get that."""
    have = np.array(rows, dtype=np.int64)
    found, left = np.zeros_like(have), min(total, int(have.sum()))
    while left:
        some = np.flatnonzero(have > found)
        more = np.minimum(largest_remainder(have[some] ** temperature, left), (have - found)[some])
        found[some] += more
        left -= int(more.sum())
    return found.tolist()


def _streams(folder: Path) -> dict[tuple[str, str], shards.Joined]:
    """What is built in a folder; nothing where nothing is."""
    return shards.open_streams(folder) if list(folder.glob(f"*/*/part-*/{shards.MANIFEST}")) else {}


def _marks(shard: shards.Shard | shards.Joined) -> list[str]:
    parts = shard.parts if isinstance(shard, shards.Joined) else [shard]
    return [part.manifest.sha256[shards.MAPPED] for part in parts]
