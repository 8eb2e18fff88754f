"""The upper layers of an encoder over kept hidden states of the lower ones, which are frozen.

    upper = UpperLayers(Encoder.load("me5-small-q4"), trained=3)     # 9 of 12 layers are run once a text, then kept
    one, other = upper.fresh(), upper.fresh()                        # weights of their own, the same kept states

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


class Table(nn.Module):
    """Kept hidden states, fp16 [places, width], looked up like word vectors; copies of a model share one."""

    padding_idx = None

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.states, self.used = torch.zeros((1, width), dtype=torch.float16, device=device), 1  # place 0 pads

    def __deepcopy__(self, memo: Any) -> Table:
        return self

    def forward(self, places: Tensor) -> Tensor:
        """Hidden states [..., width] of `places`, fp32."""
        return self.states[places].float()

    def append(self, states: Tensor) -> int:
        """Keep `states` [n, width]; the place of the first."""
        first, self.used = self.used, self.used + len(states)
        if self.used > len(self.states):
            size = max(self.used, len(self.states) * 3 // 2)
            larger = self.states.new_zeros((size, self.states.shape[1]))
            larger[: len(self.states)] = self.states
            self.states = larger  # whole when it takes its place: the training thread may be looking up meanwhile
        self.states[first : self.used] = states
        return first


class _InPlace(nn.Module):
    """In place of a backbone's embeddings: what is looked up in the table is the upper layers' input as it is."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.word_embeddings = table

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Tensor:
        return self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds


class _Lower:
    """The frozen layers, and of every text (its token ids) the places of its states; copies of a model share one."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.places = encoder.eval(), {}

    def __deepcopy__(self, memo: Any) -> _Lower:
        return self


class UpperLayers(Encoder):
    """The last `trained` layers of `whole`, a BERT-like encoder, which is cut for it; what lies below is run once for
    every text and kept."""

    def __init__(self, whole: Encoder, trained: int) -> None:
        lower = whole.backbone
        words, lower.embeddings = lower.embeddings, None  # the largest part, which is not copied
        upper, lower.embeddings = copy.deepcopy(lower), words
        cut = max(0, len(upper.encoder.layer) - trained)
        upper.encoder.layer, lower.encoder.layer = upper.encoder.layer[cut:], lower.encoder.layer[:cut]
        upper.embeddings = _InPlace(Table(whole.width, whole.device))
        super().__init__(upper, whole.tokenizer, whole.max_tokens)
        self.lower = _Lower(whole)

    def fresh(self) -> UpperLayers:
        """A copy with weights of its own and the same kept states."""
        return copy.deepcopy(self)

    def tokenize(self, texts: Sequence[str], prefix: str = "", max_tokens: int | None = None) -> list[list[int]]:
        """The places of the texts' tokens; states that are not kept yet are computed first."""
        places = self.lower.places
        rows = [tuple(row) for row in self.lower.encoder.tokenize(texts, prefix, max_tokens)]
        with _ONE_AT_A_TIME:  # a loop tokenises in a thread of its own
            self._keep([row for row in dict.fromkeys(rows) if row not in places])
        return [list(places[row]) for row in rows]

    def _keep(self, rows: Sequence[tuple[int, ...]]) -> None:
        """Run the lower layers on `rows` of token ids, in training's precision."""
        lower, table = self.lower.encoder, self.backbone.embeddings.word_embeddings
        with lower._inference(precision(self.device).name):
            lower.choose_attention()
            for piece in by_length([len(row) for row in rows], piece_tokens(self.device)):
                most = len(rows[piece[0]])
                ids = torch.tensor([[*rows[i], *[0] * (most - len(rows[i]))] for i in piece], device=self.device)
                shown = torch.tensor([[j < len(rows[i]) for j in range(most)] for i in piece], device=self.device)
                hidden = lower.backbone(input_ids=ids, attention_mask=shown.long()).last_hidden_state
                first = table.append(hidden[shown])
                for i in piece:
                    self.lower.places[rows[i]] = range(first, first + len(rows[i]))
                    first += len(rows[i])
