"""The upper layers of an encoder over kept hidden states of the lower ones, which are frozen.

    upper = UpperLayers(Encoder.load("me5-small-q4"), trained=3)     # 9 of 12 layers are run once a text, then kept
    one, other = upper.copy(), upper.copy()                          # weights of their own, the same kept states

An encoder in every respect: "tokens" are places of a table in which a token's hidden state lies, so that collation,
training, `encode` and a teacher's joint inputs go on as they are. (A teacher of upper layers reads query and passage
apart below and together above: MacAvaney et al. 2020.) Arms and seeds that tune the same layers share the table.

Cost: of 12 layers with 3 trained, a step takes 9 layer passes in place of 18, and `encode` 3 of 12 (counted, with a
backward pass as two); a kept token takes 2 bytes a dimension, 0.8 GB for a million tokens of mE5-small.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from me5lib.device import precision
from me5lib.model.encoder import Encoder, by_length, piece_tokens

_ONE_AT_A_TIME = Lock()


class Kept:
    """The frozen layers, and what they gave: hidden states, fp16 [places, width], and of every text (its token ids) the
    places of its own; copies of a model share it."""

    def __init__(self, lower: Encoder) -> None:
        self.lower, self.places = lower.eval(), {}
        self.states, self.used = torch.zeros((1, lower.width), dtype=torch.float16, device=lower.device), 1  # 0 pads

    def __deepcopy__(self, memo: Any) -> Kept:
        return self

    def add(self, rows: Sequence[tuple[int, ...]]) -> None:
        """Run the lower layers on `rows` of token ids, in training's precision."""
        lower, device, order, more = self.lower, self.lower.device, [], []
        with lower._inference(precision(device).name):
            lower.choose_attention()
            for piece in by_length([len(row) for row in rows], piece_tokens(device)):
                ids = [list(rows[i]) for i in piece]
                batch = lower.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
                more.append(lower.backbone(**batch).last_hidden_state[batch["attention_mask"].bool()].half())
                order += [rows[i] for i in piece]
        start = self.used
        used = start + sum(map(len, order))
        if used > len(self.states):  # half as large again, so that a step does not copy what all steps have kept
            with torch.inference_mode(False):  # a training writes into it, too, though `encode` may have made it
                larger = self.states.new_zeros((max(used, len(self.states) * 3 // 2), self.states.shape[1]))
            larger[: self.used] = self.states[: self.used]
            self.states = larger  # whole when it takes its place: a training looks up what was there meanwhile
        for states in more:
            self.states[self.used : self.used + len(states)] = states
            self.used += len(states)
        for row in order:  # last: what is interrupted before has no place, and is computed again
            self.places[row] = range(start, start + len(row))
            start += len(row)


class _InPlace(nn.Module):
    """In place of a backbone's embeddings: kept states, fp32, are the upper layers' input as they are."""

    padding_idx = None

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    @property
    def word_embeddings(self) -> _InPlace:
        """What texts are looked up in."""
        return self

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Tensor:
        return self.kept.states[input_ids].float() if inputs_embeds is None else inputs_embeds


class UpperLayers(Encoder):
    """The last `trained` layers of `whole`, a BERT-like encoder, which is cut for it; what lies below is run once for
    every text and kept."""

    def __init__(self, whole: Encoder, trained: int) -> None:
        lower = whole.backbone
        words, lower.embeddings = lower.embeddings, None  # the largest part, which is not copied
        upper, lower.embeddings = copy.deepcopy(lower), words
        cut = max(0, len(upper.encoder.layer) - trained)
        upper.encoder.layer, lower.encoder.layer = upper.encoder.layer[cut:], lower.encoder.layer[:cut]
        upper.embeddings = _InPlace(Kept(whole))
        super().__init__(upper, whole.tokenizer, whole.max_tokens)

    def save(self, folder: Any, *options: Any, **more: Any) -> None:
        """Write the whole model, the lower layers below these: see `Encoder.save`."""
        whole = self.backbone.embeddings.kept.lower.copy()
        whole.backbone.encoder.layer.extend(copy.deepcopy(self.backbone.encoder.layer))
        whole.trained_further().save(folder, *options, **more)

    def tokenize(self, texts: Sequence[str], prefix: str = "", max_tokens: int | None = None) -> list[list[int]]:
        """The places of the texts' tokens; states that are not kept yet are computed first."""
        kept = self.backbone.embeddings.kept
        rows = [tuple(row) for row in kept.lower.tokenize(texts, prefix, max_tokens)]
        with _ONE_AT_A_TIME:  # a loop tokenises in a thread of its own
            if new := [row for row in dict.fromkeys(rows) if row not in kept.places]:
                kept.add(new)
        return [list(kept.places[row]) for row in rows]
