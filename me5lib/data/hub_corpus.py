"""What a scale of the hub trains on: shards that `me5 mixture build` made, else drawings that `me5 fetch` made.

The same face as `corpus.Corpus`, without evaluation sets of its own: those of the paper's scales come from mteb.

Cost: opening reads the manifests and footers; the labelled examples are held in memory, a few GB at the paper's size.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING

from me5lib.data import cards, hub, pipeline, shards
from me5lib.data.mixture import Mixture
from me5lib.io import Me5Error
from me5lib.pairs import Labelled, text_key

if TYPE_CHECKING:
    from me5lib.config import Scale, Stage

DEV_SHARE = 1 / 1_000  # ours: labelled examples kept out of stage 2 to judge its teacher by; some 1,600 of the paper's


class HubCorpus:
    """The sources of a hub scale, memory-mapped. `fingerprint` names exactly these shards."""

    def __init__(self, dial: Scale) -> None:
        """Raises `Me5Error` where neither the built shards nor the drawings of all sources are there."""
        self.scale = dial
        self.built = _built(dial.data.sources)
        self.shards = self.built or hub.open_hub(dial)

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
        return hub.labelled(self.scale)

    def tasks(self) -> list:
        """None: there is nothing to look at during training but the loss."""
        return []


def _built(sources: tuple[str, ...]) -> dict[tuple[str, str], shards.Joined]:
    """The streams of all `sources` that `me5 mixture build` finished; empty where it has made none of them."""
    if not list(pipeline.home().glob(f"*/*/part-*/{shards.MANIFEST}")):
        return {}
    found = {key: one for key, one in shards.open_streams(pipeline.home()).items() if key[0] in sources}
    missing = sorted(set(sources) - {source for source, _ in found})
    if found and missing:
        raise Me5Error(f"{pipeline.home()} lacks {', '.join(missing)}: me5 mixture build --card {missing[0]}")
    return found


def _marks(shard: shards.Shard | shards.Joined) -> list[str]:
    parts = shard.parts if isinstance(shard, shards.Joined) else [shard]
    return [part.manifest.sha256[shards.MAPPED] for part in parts]
