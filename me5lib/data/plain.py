"""Plain text and language codes: what every source needs before a string may become a row.

`plain` takes markup and placeholders out of an interface string or a Markdown paragraph; `language` maps the many tags
that translators use to one code; `in_script` says whether a text can be in its language at all; `expand` writes out a
sentence template. Pure functions on strings. Cost: 2 µs a string, 15 µs with markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import cache, lru_cache

_MARKUP = re.compile(r"[&<%{\[_`*$~]|https?://")
_KEEP = (  # markup around words: the words stay
    (re.compile(r"\(_\w\)"), ""),  # mnemonic of a script without Latin letters: (_F)
    (re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)"), r"\1"),  # Markdown links and pictures
    (re.compile(r"\*\*([^*]+)\*\*|(?<![\w*])\*([^\s*](?:[^*]*[^\s*])?)\*(?![\w*])"), r"\1\2"),  # emphasis, not 2 * 3
    (re.compile(r"(?<!\w)_(?=[^\W_])|`+|~~|(?<!\w)__|__(?!\w)"), ""),  # mnemonics, code
)
_DROP = re.compile(
    r"""\[%key:[^\]]*%\]                          # reference to another string
    | </?[a-zA-Z][^<>]*>  | <!--.*?-->            # HTML
    | https?://\S*[\w/]                           # addresses
    | %\(\w+\)[-+\#0]*\d*(?:\.\d+)?[a-zA-Z]       # %(name)s
    | %[-+\#0]*\d*(?:\.\d+)?[sdifrxgcu](?!\w)     # %s, %02d
    | \{\{.*?\}\} | \{%.*?%\} | \$?\{[^{}]*\}     # {{ x }}, {% x %}, ${x}, {x}
    | \$[a-z]\b                                   # $d
    """,
    re.VERBOSE | re.DOTALL,
)
# What a placeholder stood in:
_HOLLOW = re.compile(r"""\(\s*\)|\[\s*\]|«\s*»|“\s*”|„\s*“|「\s*」|"\s*"|(?<!\w)'\s*'(?!\w)""")
_GAP = re.compile(r"\s+([,.;:!?)\]»”])(?=\s|$)")
_EDGE = " \t\n\ufeff:,;/|·•–—-=>"
_LATIN = re.compile(r"[A-Za-zÀ-ɏḀ-ỿ]")
_NOT_LATIN = re.compile(r"[^\W\d_A-Za-zªºÀ-˿Ḁ-ỿ]")
_BRACKET = re.compile(r"\[[^\[\](){}<>]*\]|\([^\[\](){}<>]*\)|\{[^{}]*\}|<[^<>]*>")  # an innermost one
_LETTER = re.compile(r"[^\W\d_]")

# Ours, beside CLDR's own aliases: what translation teams call some languages.
_ALIASES = {"no": "nb", "cmn": "zh", "nob": "nb", "zlm": "ms", "npi": "ne", "nyn": "ny",
            "fuv": "ff", "azb": "az"}
_ODD = {"ru@petr1708", "ach_ug"}  # spelling of 1708; the pseudo-language in which Crowdin marks strings


@lru_cache(maxsize=1 << 16)  # interface strings repeat: the English one of every language, "Password" in every part
def plain(text: str) -> str:
    """`text` without markup, placeholders, addresses and needless white space; "" when nothing is left."""
    if _MARKUP.search(text):
        for pattern, kept in _KEEP:
            text = pattern.sub(kept, html.unescape(text) if "&" in text else text)
        text, dropped = _DROP.subn(" ", text)
        text = text.replace("%%", "%")
        if dropped:
            text = _GAP.sub(r"\1", _HOLLOW.sub(" ", _HOLLOW.sub(" ", text)))  # twice: quotes in brackets
    return " ".join(text.split()).strip(_EDGE)


def has_letter(text: str) -> bool:
    """Whether there is a letter of any script in `text`."""
    return _LETTER.search(text) is not None


@cache
def language(tag: str) -> str | None:
    """The code of this project for a translator's `tag` (`pt_BR`, `sr@latin`, `zh-Hant`, `deu`), None if it is none.

    ISO 639-1 where there is one, else 639-3; regions are dropped; a script is added where it is not the usual one:
    `zh` and `zh-hant`, `sr` and `sr-latn`. Portuguese of Brazil and of Portugal are one `pt`.
    """
    from babel import Locale
    from babel.core import get_global

    parts = re.split(r"[-_@.]", tag.casefold())
    base = _ALIASES.get(parts[0]) or get_global("language_aliases").get(parts[0], parts[0])
    if tag.casefold() in _ODD or not re.fullmatch(r"[a-z]{2,3}", base):
        return None
    if base not in Locale("en").languages and base not in get_global("likely_subtags"):
        return None
    if base == "zh":
        return "zh-hant" if {"hant", "tw", "hk", "mo"} & set(parts) else "zh"
    scripts = {"latin": "latn"}.get(parts[-1], parts[-1])
    return f"{base}-{scripts}" if scripts in ("latn", "cyrl", "arab") and scripts != _script(base) else base


@cache
def _script(code: str) -> str:
    """The usual script of a language, as ISO 15924 in lower case (`latn` when CLDR does not say)."""
    from babel.core import get_global

    base, _, script = code.partition("-")
    likely = get_global("likely_subtags").get(base, "").split("_")
    return script or (likely[1].casefold() if len(likely) > 1 else "latn")


def in_script(text: str, code: str) -> bool:
    """Whether `text` has a letter of a kind that `code` is written in: Latin or not Latin, no finer."""
    return (_LATIN if _script(code) == "latn" else _NOT_LATIN).search(text) is not None


def expand(
    template: str, rules: Mapping[str, str], slots: Mapping[str, str], options: bool = False, depth: int = 0
) -> str:
    """The first sentence of a Hassil template: first alternative of `(a|b)`; `[options]` are left out or all taken.

    `<rule>` is looked up in `rules` and expanded in turn, `{list:slot}` in `slots`; what is unknown, and a rule nested
    deeper than 8, gives nothing.
    """
    while found := _BRACKET.search(template):  # every turn resolves one innermost bracket
        kind, inner = found[0][0], found[0][1:-1]
        if kind == "<":
            put = expand(rules.get(inner, ""), rules, slots, options, depth + 1) if depth < 8 else ""
        elif kind == "{":
            put = slots.get(inner.split(":")[0], " ")
        else:
            put = _first(inner) if kind == "(" or options else ""
        template = template[: found.start()] + put + template[found.end() :]
    return " ".join(_first(template).split())


def _first(alternatives: str) -> str:
    """The first of alternatives; of a permutation (`a;b`) all parts, as they stand."""
    return alternatives.split("|")[0].replace(";", " ")
