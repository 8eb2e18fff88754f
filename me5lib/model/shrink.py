"""A smaller model out of a larger one: its lower layers, and the part of its vocabulary that some texts need.

    encoder = lower_layers(Encoder.load("me5-small-q4"), 3)
    encoder = cut_vocabulary(encoder, texts)              # all that `texts` use: each of them keeps its vector
    encoder = cut_vocabulary(encoder, texts, 62_000)      # the commonest: a text with a rarer piece is spelt otherwise

Of mE5-small's 118 million weights 96 million are the table of its 250,037 tokens, most of which a language never needs.
Cost: each text is tokenised once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from me5lib.io import Me5Error
from me5lib.model import text
from me5lib.model.encoder import WINDOW, Encoder
from me5lib.pairs import script


def lower_layers(encoder: Encoder, layers: int) -> Encoder:
    """`encoder` with its lower `layers` alone, changed in place. Raises `Me5Error` where it has fewer."""
    stack = encoder.backbone.encoder
    if not 0 < layers <= len(stack.layer):
        raise Me5Error(f"model.layers is {layers}, but the backbone has {len(stack.layer)}: choose 1 to that many")
    stack.layer = stack.layer[:layers]
    encoder.backbone.config.num_hidden_layers = layers
    return encoder


def cut_vocabulary(encoder: Encoder, texts: Iterable[str], size: int = 0) -> Encoder:
    """`encoder` with the pieces that `texts` and the prefixes use, the `size` commonest (0: all), changed in place.

    Special tokens, the prefixes and every single character of a piece in use stay in any case. A text whose pieces all
    stayed is cut as before and keeps its vector; one that had another piece is spelt in smaller ones. Raises `Me5Error`
    for a vocabulary without probabilities (BERT's, GPT's): only one like XLM-R's (unigram) can lose pieces.
    """
    from transformers import PreTrainedTokenizerFast

    state, table = json.loads(encoder.tokenizer.backend_tokenizer.to_str()), encoder.backbone.get_input_embeddings()
    if (kind := state["model"]["type"]) != "Unigram":
        raise Me5Error(f"a vocabulary of the kind {kind} cannot be cut: choose a model with XLM-R's, as mE5 has")
    left, counts = iter(texts), np.zeros(len(encoder.tokenizer), np.int64)
    while window := list(islice(left, WINDOW)):  # the ids of all at once would take gigabytes
        used = chain.from_iterable(encoder.tokenize(window))
        counts += np.bincount(np.fromiter(used, np.int64), minlength=len(counts))
    always = chain.from_iterable(encoder.tokenize([text.QUERY, text.PASSAGE]))
    kept = sorted(_kept(state, counts, size).union(always))
    raw = Tokenizer.from_str(_renumbered(state, kept))
    encoder.tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **text.ROLES)
    rows = table.weight.detach()[torch.tensor(kept)].clone()
    encoder.backbone.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=False))
    encoder.backbone.config.vocab_size = len(kept)
    return encoder


def characters(encoder: Encoder, texts: Iterable[Iterable[str]]) -> list[str]:
    """The pieces of one character: signs and marks, and letters of a script that one in a hundred of the first thousand
    (ours) of any of `texts` is in: with them among the texts of a cut, no word in such a script gets an `<unk>`."""
    used = [Counter(script([text]) for text in islice(own, 1_000)) for own in texts]
    scripts = {name for own in used for name, times in own.items() if 100 * times >= own.total()} | {"none"}
    return [piece for piece in encoder.tokenizer.get_vocab() if len(piece) == 1 and script(piece) in scripts]


def dropped_shares(before: Encoder, after: Encoder, texts: Mapping[Any, Sequence[str]]) -> dict[Any, dict[str, float]]:
    """By key of `texts`: how many there are, the share `changed`, which have a token that the cut `after` lost (all
    others keep their vectors), and the share of such `tokens` among all."""
    names, stayed = before.tokenizer.convert_ids_to_tokens(range(len(before.tokenizer))), after.tokenizer.get_vocab()
    lost, found = np.array([name not in stayed for name in names]), {}
    for key, own in texts.items():
        hits = [lost[ids] for ids in before.tokenize(own)]
        found[key] = {"texts": len(own), "changed": float(np.mean([hit.any() for hit in hits])),
                      "tokens": float(np.concatenate(hits).mean())}
    return found


def _kept(state: dict[str, Any], counts: np.ndarray, size: int) -> set[int]:
    """Ids that stay of a tokenizer's `state`; `counts` [ids]: how often each was used.

    The least probable piece is one of them: what an unknown character costs is reckoned from it.
    """
    pieces, in_use = state["model"]["vocab"], np.flatnonzero(counts)
    characters = {character for i in in_use if i < len(pieces) for character in pieces[i][0]}
    stays = {token["id"] for token in state["added_tokens"]} | {state["model"]["unk_id"]}
    stays |= {i for i, (piece, _) in enumerate(pieces) if piece in characters or piece[:3] == "<0x"}  # <0x41>: a byte
    stays.add(min(range(len(pieces)), key=lambda i: pieces[i][1]))
    commonest = in_use[np.argsort(-counts[in_use], kind="stable")][: size or None]
    return stays.union(commonest.tolist())


def _renumbered(state: dict[str, Any], kept: Sequence[int]) -> str:
    """The tokenizer's `state` with the pieces `kept`, numbered from 0, as JSON."""
    number, model = {old: new for new, old in enumerate(kept)}, state["model"]
    model["vocab"] = [model["vocab"][i] for i in kept if i < len(model["vocab"])]
    model["unk_id"] = number[model["unk_id"]]
    for token in state["added_tokens"]:
        token["id"] = number[token["id"]]
    for token in state["post_processor"].get("special_tokens", {}).values():
        token["ids"] = [number[i] for i in token["ids"]]
    return json.dumps(state)
