"""Text on its way in: prefixes, the instruction template, cleaning, and the vocabulary of the offline scales.

Every text that mE5 reads begins with `query: ` or `passage: ` (the instruct model: with a task description), and the
average pooling takes in the tokens of the prefix too. Texts are stored bare; the prefix is put on here, last.

The vocabulary is a unigram model (as XLM-R's), trained by sentencepiece on one thread because the trainer of
`tokenizers` gives another vocabulary at every run, and then written as a fast tokenizer with XLM-R's normaliser and
layout (`model.xlmr`): a student finds the same characters and words as the released models do, and cuts them shorter.
Cost: 100,000 interface strings make 32,000 pieces in about ten seconds on one core.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from me5lib.io import Me5Error
from me5lib.model import xlmr

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QUERY, PASSAGE = "query: ", "passage: "
MAX_CHARS = 100_000  # a text is cut here before tokenising: 512 pieces of 16 characters are far less (ours)
TRAINING_CHARS = 512  # a training text is read so far: words repeat, long texts would only slow the trainer (ours)
TRAINING_TEXTS = 150_000  # more texts change few of 32,000 pieces (ours)


class Counts(NamedTuple):
    """What `clean` met: texts in all, empty ones, cut ones, and ones with lone surrogates. Adds up with `+`."""

    texts: int = 0
    empty: int = 0
    cut: int = 0
    repaired: int = 0

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        """Counts of two batches together."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def instruct(task: str, query: str) -> str:
    """The instruct model's query (E5-mistral's template); an empty `task` leaves the query as it is.

    Documents of a retrieval task get neither instruction nor prefix.
    """
    return f"Instruct: {task}\nQuery: {query}" if task else query


def clean(texts: Sequence[str], max_chars: int = MAX_CHARS) -> tuple[list[str], Counts]:
    """Texts that a tokenizer can take, and what had to be done.

    Empty texts stay; texts over `max_chars` characters are cut; a lone surrogate becomes U+FFFD (two that make a
    pair become their character). Raises ValueError naming the index of anything that is not a string.
    """
    texts = list(texts)
    try:
        lengths = [str.__len__(text) for text in texts]
    except TypeError:
        index = next(i for i, text in enumerate(texts) if not isinstance(text, str))
        raise ValueError(f"text {index} is {_kind(texts[index])}: every text must be a string") from None
    cut = sum(length > max_chars for length in lengths)
    kept = [text[:max_chars] for text in texts] if cut else texts
    repaired = 0
    if not _encodable("".join(kept)):
        bad = [i for i, text in enumerate(kept) if not _encodable(text)]
        repaired = len(bad)
        for i in bad:
            kept[i] = kept[i].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return kept, Counts(len(kept), lengths.count(0), cut, repaired)


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _encodable(text: str) -> bool:
    try:
        text.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def vocabulary_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of everything that decides how a text is cut: pieces with their scores, normaliser, template.

    It is recorded with the results: two runs are comparable only over one vocabulary.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: state[key] for key in ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, ensure_ascii=True).encode("ascii")).hexdigest()


def train_tokenizer(texts: Iterable[str], vocabulary: int, folder: Path | None = None) -> PreTrainedTokenizerFast:
    """A unigram tokenizer of at most `vocabulary` pieces, the same for the same texts on every run.

    Of more than `TRAINING_TEXTS` texts every k-th is read. Written to `folder` when one is given. Raises `Me5Error`
    when there is no text to learn from, or too few pieces for its letters and the 256 bytes.
    """
    sample = _sample(texts)
    if not sample:
        raise Me5Error("no text to train a vocabulary on: check the sources of this scale")
    try:
        model = _train_unigram(sample, vocabulary - 1)  # XLM-R's <mask> takes the last place
    except RuntimeError as error:  # sentencepiece's own words name a line of its source
        raise Me5Error(f"no vocabulary of {vocabulary} pieces can be trained on {len(sample)} texts: "
                       f"set model.vocabulary to 1,000 or more ({str(error).splitlines()[-1]})") from None
    tokenizer = xlmr.fast_tokenizer(_pieces(model), xlmr.charsmap(), byte_fallback=True)
    if folder is not None:
        tokenizer.save_pretrained(str(folder))
    return tokenizer


def _sample(texts: Iterable[str]) -> list[str]:
    """At most `TRAINING_TEXTS` different texts, evenly spaced, in the order given; cleaned, cut short, normalised."""
    from tokenizers.normalizers import Precompiled

    kept = list(dict.fromkeys(clean(list(texts), TRAINING_CHARS)[0]))
    kept = [text for text in kept if text.strip()]
    step = max(1, -(-len(kept) // TRAINING_TEXTS))
    normaliser = Precompiled(xlmr.charsmap())
    return [text for text in map(normaliser.normalize_str, kept[::step]) if text.strip()]


def _alphabet(sample: list[str], vocabulary: int) -> str:
    """The characters that get a piece of their own: the commonest, seen at least twice, within a third of the pieces.

    A share of all running characters (XLM-R: 0.9995) would drop whole scripts that have few texts here. What is left
    out is spelt in UTF-8 bytes, so that no text turns into <unk> (XLM-R has no such fallback: ours).
    """
    counts = Counter(chain.from_iterable(sample))
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: vocabulary // 3]
    found = [character for character, count in common if count > 1 and not character.isspace()]
    return "".join(dict.fromkeys([*found, ":"]))  # every prefix ends with one


def _train_unigram(sample: list[str], vocabulary: int) -> bytes:
    """sentencepiece's trainer, a serialised model. On one thread, so that its sums are always added in one order."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        character_coverage=0.98,  # the least that sentencepiece takes; `required_chars` adds the rest
        required_chars=_alphabet(sample, vocabulary),
        byte_fallback=True,
        user_defined_symbols=["▁query", "▁passage"],  # every text begins with one: they cost two tokens, as in XLM-R
        normalization_rule_name="identity",  # `_sample` has normalised
        bos_id=0, pad_id=1, eos_id=2, unk_id=3,
        **dict(zip(("bos_piece", "pad_piece", "eos_piece", "unk_piece"), xlmr.SPECIAL, strict=True)),
        num_threads=1,
        shuffle_input_sentence=False,
        max_sentence_length=4 * TRAINING_CHARS,  # bytes, so that none is skipped
        minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def _pieces(model: bytes) -> list[tuple[str, float]]:
    """The pieces of a sentencepiece model with their log probabilities, by id."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
