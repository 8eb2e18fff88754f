"""XLM-R's character map, derived from that of the installed sentencepiece: nobody's file is carried along.

    charsmap()      # bytes, as the normaliser `Precompiled` of `tokenizers` takes them
    rules()         # the same as text: what is replaced → by what

Cost: about three seconds, once a process; what is made with it (a tokenizer's file) is kept by its user.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import struct
import tempfile
from pathlib import Path

import numpy as np

from me5lib.io import Me5Error

# Characters that Unicode gained after XLM-R's map was made: XLM-R leaves them alone, today's map folds some of them.
_LATER = (
    (0x061C, 0x061C), (0x32FF, 0x32FF), (0xA7F1, 0xA7F4), (0xAB69, 0xAB69), (0x105C0, 0x105FF), (0x10780, 0x107BA),
    (0x11380, 0x113FF), (0x11900, 0x1195F), (0x16100, 0x1613F), (0x16D40, 0x16D7F), (0x1CCD6, 0x1CCF9),
    (0x1E030, 0x1E06D), (0x1F16C, 0x1F16C), (0x1F23B, 0x1F23B), (0x1FBF0, 0x1FBF9),
)  # fmt: skip
_JOINER = {"\u200d": " "}  # XLM-R's map makes a space of the zero-width joiner; today's keeps it
_RULES_SHA256 = "e85b175040c3dcd9120ff1fe2fbe630f7abfcd22267d6c763cfc5390374c7849"


@functools.lru_cache(maxsize=1)
def rules() -> dict[str, str]:
    """XLM-R's character map: what is replaced (one character or a sequence, the longest match first) → by what.

    It is sentencepiece's `nmt_nfkc` as it was in 2019. The one of the installed sentencepiece knows a later Unicode;
    Unicode never changes how characters that it has are composed, so the two differ only in rules that name a
    character that came later, and in the joiner. Leaving those out and putting the joiner in gives XLM-R's 224,711
    rules exactly, whichever sentencepiece made them: the hash of all of them is held. Raises `Me5Error` otherwise.
    """
    import sentencepiece

    today = _read_map(_charsmap(_train_nothing(normalization_rule_name="nmt_nfkc")))
    later = {chr(code) for first, last in _LATER for code in range(first, last + 1)}
    kept = {source: target for source, target in today.items() if later.isdisjoint(source)} | _JOINER
    listed = json.dumps(sorted(kept.items())).encode("ascii")
    if hashlib.sha256(listed).hexdigest() != _RULES_SHA256:
        raise Me5Error(f"XLM-R's character map cannot be had from that of sentencepiece {sentencepiece.__version__}: "
                       "install the version of constraints.txt")
    return kept


@functools.lru_cache(maxsize=1)
def charsmap() -> bytes:
    """The same compiled, as the normaliser `Precompiled` of `tokenizers` takes it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.tsv"
        lines = (f"{_code_points(source)}\t{_code_points(target)}\n" for source, target in rules().items())
        file.write_text("".join(lines), encoding="ascii")
        return _charsmap(_train_nothing(normalization_rule_tsv=str(file)))


def _code_points(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def _train_nothing(**normaliser: str) -> bytes:
    """A sentencepiece model of next to no text: made for the character map that its trainer compiles into it."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b"] * 8), model_writer=model, vocab_size=8, hard_vocab_limit=False, minloglevel=2,
        **normaliser,
    )  # fmt: skip
    return model.getvalue()


def _read_map(charsmap: bytes) -> dict[str, str]:
    """Source → target of every rule of a compiled map: a double-array trie of UTF-8 bytes, and the targets behind it.

    A unit (uint32) of the trie: bits 0–7 its label, bit 8 whether a rule ends here, bits 10–31 how far its children
    lie (shifted by 8 more where bit 9 is set). The first child of an end holds where its target begins.
    """
    (size,) = struct.unpack_from("<I", charsmap)
    units, targets = np.frombuffer(charsmap[4 : 4 + size], "<u4"), charsmap[4 + size :]
    labels, rules, level = np.arange(1, 256, dtype=np.uint32), {}, [(_children(units[:1])[0], b"")]
    while level:  # a level of the trie at a time: a byte longer each
        at = np.array([place for place, _ in level], np.uint32)[:, None] ^ labels
        parents, label = np.nonzero(units[np.minimum(at, len(units) - 1)] & 0x800000FF == labels)
        at = at[parents, label]
        below, ends = at ^ _children(units[at]), (units[at] & 0x100).astype(bool)
        sources = [level[parent][1] + bytes((byte + 1,)) for parent, byte in zip(parents, label, strict=True)]
        for i in np.flatnonzero(ends):
            start = units[below[i]] & 0x7FFFFFFF
            rules[sources[i].decode("utf8")] = targets[start : targets.index(b"\0", start)].decode("utf8")
        level = list(zip(below, sources, strict=True))
    return rules


def _children(units: np.ndarray) -> np.ndarray:
    """How far the children of each unit lie from it."""
    return (units >> 10) << ((units & 0x200) >> 6)


def _charsmap(model: bytes) -> bytes:
    """The compiled character map inside a serialised sentencepiece model.

    Field 2 of field 3 of its protobuf message, read off the wire format: that spares the protobuf package.
    """
    return _field(_field(model, 3), 2)


def _field(message: bytes, number: int) -> bytes:
    """The first length-delimited field `number` of a protobuf message; empty where it has none."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            if tag >> 3 == number:
                return message[at : at + size]
            at += size
        else:
            at += {1: 8, 5: 4}[kind]
    return b""


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A protobuf integer at place `at`, and the place behind it: seven bits a byte, lowest first."""
    value = shift = 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | message[at] << shift, at + 1
