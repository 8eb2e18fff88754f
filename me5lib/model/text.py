"""Text on its way in: prefixes, the instruction template, cleaning; XLM-R's way to cut a text, and own vocabularies.

    clean(texts)                                       # what a tokenizer can take
    tokenizer = fast_tokenizer(pieces, charsmap())     # XLM-R's layout; pieces: (text, log probability), special first
    check_golden(tokenizer, "the tokenizer of x")      # raises where it cuts as XLM-R does not
    tokenizer = train_tokenizer(texts, 32_000)         # of the offline scales
    ids = Segmenter(Path("tokenizer.json"))(texts)     # the same ids, sooner and in less memory, for reading only

Every text that mE5 reads begins with `query: ` or `passage: ` (the instruct model: with a task description). Texts are
stored bare; the prefix is put on here, last. Token ids decide vectors, and a wrong tokenizer is silent.

An own vocabulary is a unigram model with XLM-R's normaliser and layout, trained by sentencepiece on one thread because
the trainer of `tokenizers` gives another vocabulary at every run. 100,000 interface strings make 32,000 pieces in about
ten seconds on one core. XLM-R's character map is derived from sentencepiece's in three, once a process.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import struct
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from me5lib.io import PACKAGE, Me5Error, cache, put, put_text, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QUERY, PASSAGE = "query: ", "passage: "
MAX_CHARS = 100_000  # a text is cut here before tokenising: 512 pieces of 16 characters are far less (ours)
TRAINING_CHARS = 512  # a training text is read so far: words repeat, long texts would only slow the trainer (ours)
TRAINING_TEXTS = 150_000  # more texts change few of 32,000 pieces (ours)

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # XLM-R's ids 0, 1, 2, 3; its <mask> comes last
ROLES = {
    "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
    "unk_token": "<unk>", "mask_token": "<mask>",
    "model_input_names": ["input_ids", "attention_mask"],  # one segment: no token types
}  # fmt: skip
VOCABULARIES = range(250_002, 250_049)  # rows of the embedding tables of XLM-R, Multilingual-MiniLM and mE5
GOLDEN = PACKAGE / "model" / "golden_ids.jsonl"  # sentences of ours, and the ids that mE5's own tokenizer gives them
# Characters that Unicode gained after XLM-R's map was made: XLM-R leaves them alone, today's map folds some of them.
_LATER = (
    (0x061C, 0x061C), (0x32FF, 0x32FF), (0xA7F1, 0xA7F4), (0xAB69, 0xAB69), (0x105C0, 0x105FF), (0x10780, 0x107BA),
    (0x11380, 0x113FF), (0x11900, 0x1195F), (0x16100, 0x1613F), (0x16D40, 0x16D7F), (0x1CCD6, 0x1CCF9),
    (0x1E030, 0x1E06D), (0x1F16C, 0x1F16C), (0x1F23B, 0x1F23B), (0x1FBF0, 0x1FBF9),
)  # fmt: skip
SEGMENTER_VERSION = 1  # raise it when what is derived of a tokenizer changes
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # sentencepiece's types of a piece
_in_use: WeakValueDictionary[bytes, PreTrainedTokenizerFast] = WeakValueDictionary()
_JOINER = {"\u200d": " "}  # XLM-R's map makes a space of the zero-width joiner; today's keeps it
_RULES_SHA256 = "e85b175040c3dcd9120ff1fe2fbe630f7abfcd22267d6c763cfc5390374c7849"


def instruct(task: str, query: str) -> str:
    """The instruct model's query (E5-mistral's template); an empty `task` leaves the query as it is.

    Documents of a retrieval task get neither instruction nor prefix.
    """
    return f"Instruct: {task}\nQuery: {query}" if task else query


def clean(texts: Sequence[str], max_chars: int = MAX_CHARS) -> list[str]:
    """Texts that a tokenizer can take: over `max_chars` characters cut, a lone surrogate become U+FFFD, a pair of them
    its character. Raises ValueError naming the index of anything that is not a string."""
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            kind = "None" if text is None else f"of type {type(text).__name__}"
            raise ValueError(f"text {index} is {kind}: every text must be a string")
    kept = [text[:max_chars] for text in texts]
    try:
        "".join(kept).encode("utf8")
    except UnicodeEncodeError:
        return [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in kept]
    return kept


def shared_tokenizer(files: Iterable[Path], load: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """What `load` makes of `files`, or what was made of equal ones and is in use: XLM-R's takes a second and 260 MB.

    Whoever alters a tokenizer alters a copy: `encoder.tokenizer = copy.deepcopy(encoder.tokenizer)`.
    """
    digest = hashlib.blake2b()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    tokenizer = _in_use.get(key := digest.digest())
    if tokenizer is None:
        tokenizer = _in_use[key] = load()
    return tokenizer


def vocabulary_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of everything that decides how a text is cut: pieces with their scores, normaliser, template."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: state[key] for key in ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, ensure_ascii=True).encode("ascii")).hexdigest()


def fast_tokenizer(
    pieces: Sequence[tuple[str, float]], charsmap: bytes, *, byte_fallback: bool = False
) -> PreTrainedTokenizerFast:
    """Pieces with log probabilities as a fast tokenizer: XLM-R's normaliser, word marks, special tokens, template.

    `byte_fallback`: the pieces hold the 256 bytes, and what has no piece is spelt in them (XLM-R: `<unk>`).
    """
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.Unigram(list(pieces), unk_id=SPECIAL.index("<unk>"), byte_fallback=byte_fallback))
    raw.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap),
                                           normalizers.Replace(Regex(" {2,}"), " ")])
    marks = {"replacement": "▁", "prepend_scheme": "always"}
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**marks)])
    words = decoders.Metaspace(**marks)
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), words]) if byte_fallback else words
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **ROLES)


def cut_by(raw: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of texts by a tokenizer of `tokenizers`, uncut and unpadded."""
    if raw.truncation is not None or raw.padding is not None:  # left over from whoever saved it
        raw.no_truncation()
        raw.no_padding()
    return [encoding.ids for encoding in raw.encode_batch_fast(texts)]


def cutter(file: Path) -> Callable[[list[str]], list[list[int]]]:
    """Texts → ids, by a `tokenizer.json`: a `Segmenter` where its vocabulary is unigram."""
    try:
        return Segmenter(file)
    except ValueError:
        return functools.partial(cut_by, Tokenizer.from_file(str(file)))


def check_golden(cut: Callable[[list[str]], list[list[int]]], name: str) -> None:
    """Raise `Me5Error` where `cut` gives texts other ids than mE5's tokenizer, on 36 sentences that are hard to cut."""
    golden = [json.loads(line) for line in GOLDEN.read_text(encoding="utf8").splitlines()]
    rows = cut([row["text"] for row in golden])
    wrong = [row["text"] for row, ids in zip(golden, rows, strict=True) if ids != row["ids"]]
    if wrong:
        raise Me5Error(f"{name} is not XLM-R's: it cuts {len(wrong)} of {len(golden)} test sentences otherwise (the "
                       f"first: {wrong[0]!r}), so its vectors would be wrong: fetch its tokenizer.json again, or "
                       "install the transformers of constraints.txt")


class Segmenter:
    """Texts → token ids, as the unigram tokenizer of a `tokenizer.json` cuts them: by sentencepiece, which takes a
    seventh of the time, and for XLM-R's vocabulary 55 MB where `tokenizers` takes 280.

    The normaliser stays that of `tokenizers`, which differs from sentencepiece's. A text that spells a special token
    (`</s>`) is cut by the tokenizer itself, read then. What is derived of the file is kept in the cache.
    """

    def __init__(self, file: Path) -> None:
        """Raises ValueError for a vocabulary that is not unigram."""
        self.file, base = file, cache() / "segmenters" / f"{sha256(file)[:24]}-{SEGMENTER_VERSION}"
        model, shell = base.with_suffix(".model"), base.with_suffix(".json")
        if not (model.is_file() and shell.is_file()):
            state = json.loads(file.read_text(encoding="utf8"))
            if state["model"]["type"] != "Unigram":
                raise ValueError(f"the vocabulary of {file} is not unigram")
            put(model, lambda beside: beside.write_bytes(_unigram_proto(state)), uuid.uuid4().hex[:8])
            state["model"]["vocab"] = state["model"]["vocab"][: state["model"]["unk_id"] + 1]
            put_text(shell, json.dumps(state | {"truncation": None, "padding": None}), uuid.uuid4().hex[:8])
        self.shell, self.whole = Tokenizer.from_file(str(shell)), None
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.before, self.after = np.array_split(self.shell.encode("").ids, 2)  # <s>, </s>
        added = self.shell.get_added_tokens_decoder().values()
        self.special = re.compile("|".join(re.escape(token.content) for token in added))

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, between `<s>` and `</s>`."""
        normal = [" ".join(self.shell.normalizer.normalize_str(text).split()) for text in texts]
        rows = [[*self.before, *row, *self.after] for row in self.pieces.encode(normal)]
        for i, text in enumerate(texts):
            if self.special.search(text):
                self.whole = self.whole or Tokenizer.from_file(str(self.file))
                rows[i] = self.whole.encode(text).ids
        return rows


def _unigram_proto(state: Mapping[str, Any]) -> bytes:
    """The state of a unigram `tokenizer.json` as sentencepiece's ModelProto, which normalises nothing.

    Fields: 1 a piece (1 its text, 2 its score, 3 its type), 2 the trainer's (3 its type, 35 whether unknown text is
    spelt in bytes), 3 the normaliser's (1 its name); a number's key is field · 8, that of bytes field · 8 + 2.
    """
    model, special = state["model"], {token["content"] for token in state["added_tokens"]}

    def _number(value: int) -> bytes:  # seven bits a byte, the lowest first
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _number(value >> 7)

    def _field(number: int, content: bytes) -> bytes:
        return _number(number << 3 | 2) + _number(len(content)) + content

    def _piece(i: int, text: str, score: float) -> bytes:
        kind = UNKNOWN if i == model["unk_id"] else CONTROL if text in special else NORMAL
        if model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", text):
            kind = BYTE
        content = _field(1, text.encode("utf8")) + b"\x15" + struct.pack("<f", score) + _number(3 << 3) + _number(kind)
        return _field(1, content)

    trainer = _number(3 << 3) + _number(1) + _number(35 << 3) + _number(bool(model.get("byte_fallback")))
    pieces = [_piece(i, text, score) for i, (text, score) in enumerate(model["vocab"])]
    return b"".join(pieces) + _field(2, trainer) + _field(3, _field(1, b"identity"))


def train_tokenizer(texts: Iterable[str], vocabulary: int, folder: Path | None = None) -> PreTrainedTokenizerFast:
    """A unigram tokenizer of at most `vocabulary` pieces, the same for the same texts; written to `folder`, if given.

    Of more than `TRAINING_TEXTS` texts every k-th is read. Raises `Me5Error` for no text, and for too few pieces.
    """
    sample = _sample(texts)
    if not sample:
        raise Me5Error("no text to train a vocabulary on: check the sources of this scale")
    try:
        model = _train_unigram(sample, vocabulary - 1)  # XLM-R's <mask> takes the last place
    except RuntimeError as error:  # sentencepiece's own words name a line of its source
        raise Me5Error(f"no vocabulary of {vocabulary} pieces can be trained on {len(sample)} texts: "
                       f"set model.vocabulary to 1,000 or more ({str(error).splitlines()[-1]})") from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(trained.get_piece_size())]
    tokenizer = fast_tokenizer(pieces, charsmap(), byte_fallback=True)
    if folder is not None:
        tokenizer.save_pretrained(str(folder))
    return tokenizer


def _sample(texts: Iterable[str]) -> list[str]:
    """At most `TRAINING_TEXTS` different texts, evenly spaced, in the order given; cleaned, cut short, normalised."""
    kept = list(dict.fromkeys(text for text in clean(list(texts), TRAINING_CHARS) if text.strip()))
    step = max(1, -(-len(kept) // TRAINING_TEXTS))
    return [text for text in map(normalizers.Precompiled(charsmap()).normalize_str, kept[::step]) if text.strip()]


def _train_unigram(sample: list[str], vocabulary: int) -> bytes:
    """sentencepiece's model of `sample`, serialised. On one thread, so that its sums are always added in one order.

    Characters with a piece of their own are the commonest, seen at least twice, within a third of the pieces: a share
    of all running characters (XLM-R: 0.9995) would drop whole scripts. The others are spelt in UTF-8 bytes (ours).
    """
    counts = Counter(chain.from_iterable(sample))
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: vocabulary // 3]
    letters = [character for character, count in common if count > 1 and not character.isspace()]
    return _sentencepiece_model(
        sample, model_type="unigram", vocab_size=vocabulary, num_threads=1, shuffle_input_sentence=False,
        character_coverage=0.98,  # the least that sentencepiece takes; `required_chars` adds the rest
        required_chars="".join(dict.fromkeys([*letters, ":"])),  # every prefix ends with one
        byte_fallback=True,
        user_defined_symbols=["▁query", "▁passage"],  # every text begins with one: they cost two tokens, as in XLM-R
        normalization_rule_name="identity",  # `_sample` has normalised
        bos_id=0, pad_id=1, eos_id=2, unk_id=3,
        **dict(zip(("bos_piece", "pad_piece", "eos_piece", "unk_piece"), SPECIAL, strict=True)),
        max_sentence_length=4 * TRAINING_CHARS,  # bytes, so that none is skipped
    )  # fmt: skip


def _sentencepiece_model(sample: list[str], **options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sample), model_writer=model, minloglevel=2,
                                             hard_vocab_limit=False, **options)
    return model.getvalue()


@functools.cache
def charsmap() -> bytes:
    """XLM-R's character map, as the normaliser `Precompiled` of `tokenizers` takes it.

    It is sentencepiece's `nmt_nfkc` as it was in 2019. Today's differs only in rules that name a character that Unicode
    gained later, and in the joiner: without those and with the joiner it has XLM-R's 224,711 rules exactly, whose hash
    is held. Raises `Me5Error` otherwise.
    """
    today = _read_map(_compiled(normalization_rule_name="nmt_nfkc"))
    later = {chr(code) for first, last in _LATER for code in range(first, last + 1)}
    rules = {source: target for source, target in today.items() if later.isdisjoint(source)} | _JOINER
    if hashlib.sha256(json.dumps(sorted(rules.items())).encode("ascii")).hexdigest() != _RULES_SHA256:
        raise Me5Error(f"XLM-R's character map cannot be had from that of sentencepiece {sentencepiece.__version__}: "
                       "install the version of constraints.txt")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.tsv"
        rows = [[" ".join(f"{ord(letter):X}" for letter in text) for text in rule] for rule in rules.items()]
        file.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="ascii")
        return _compiled(normalization_rule_tsv=str(file))


def _compiled(**normaliser: str) -> bytes:
    """The character map that sentencepiece's trainer compiles into a model, here one of next to no text.

    Of its protobuf message, field 1 of the normaliser is its name, field 2 the map: its length, seven bits a byte with
    the lowest first, and its bytes.
    """
    content, size = _sentencepiece_model(["a b"] * 8, vocab_size=8, **normaliser), 0
    start, end = re.search(rb"\n.(nmt_nfkc|user_defined)\x12([\x80-\xff]*[\0-\x7f])", content, re.DOTALL).span(2)
    for byte in reversed(content[start:end]):
        size = size << 7 | byte & 0x7F
    return content[end : end + size]


def _read_map(charsmap: bytes) -> dict[str, str]:
    """Source → target of every rule of a compiled map: a double-array trie of UTF-8 bytes, and the targets behind it.

    A unit (uint32) of the trie: bits 0–7 its label, bit 8 whether a rule ends here, bits 10–31 how far its children
    lie (shifted by 8 more where bit 9 is set). The first child of an end holds where its target begins.
    """
    (size,) = struct.unpack_from("<I", charsmap)
    units, targets = np.frombuffer(charsmap[4 : 4 + size], "<u4"), charsmap[4 + size :]
    children = (units >> 10) << ((units & 0x200) >> 6)  # how far those of each unit lie from it
    labels, rules, level = np.arange(1, 256, dtype=np.uint32), {}, [(children[0], b"")]
    while level:  # a level of the trie at a time: a byte longer each
        at = np.array([place for place, _ in level], np.uint32)[:, None] ^ labels
        parents, label = np.nonzero(units[np.minimum(at, len(units) - 1)] & 0x800000FF == labels)
        at = at[parents, label]
        below, ends = at ^ children[at], (units[at] & 0x100).astype(bool)
        sources = [level[parent][1] + bytes((byte + 1,)) for parent, byte in zip(parents, label, strict=True)]
        for i in np.flatnonzero(ends):
            start = units[below[i]] & 0x7FFFFFFF
            rules[sources[i].decode("utf8")] = targets[start : targets.index(b"\0", start)].decode("utf8")
        level = list(zip(below, sources, strict=True))
    return rules
