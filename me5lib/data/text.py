"""What a string must be before it becomes a row: without markup, of a known language, in that language's script.

Near-copies of texts belong to `split`, their keys to `me5lib.pairs`, their prefixes and tokens to `me5lib.model.text`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import cache, lru_cache

from babel import Locale, localedata
from babel.core import get_global

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
_LATIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ]")
_NOT_LATIN = re.compile(r"[^\W\d_A-Za-zªºÀ-˿Ḁ-ỿ]")
_BRACKET = re.compile(r"\[[^\[\](){}<>]*\]|\([^\[\](){}<>]*\)|\{[^{}]*\}|<[^<>]*>")  # an innermost one
_LETTER = re.compile(r"[^\W\d_]")

# Ours, beside CLDR's own aliases: what translation teams call some languages, and territories taken for languages.
_ALIASES = {"no": "nb", "cmn": "zh", "nob": "nb", "zlm": "ms", "npi": "ne", "nyn": "ny", "fuv": "ff", "azb": "az",
            "jp": "ja", "cn": "zh", "cz": "cs", "dk": "da", "gr": "el", "ua": "uk", "vn": "vi"}
_SCRIPTS = {"latin": "latn", "cyrillic": "cyrl", "arabic": "arab", "chs": "hans", "cht": "hant"}
_WRITTEN = {"latn", "cyrl", "arab", "hans", "hant"}  # scripts that tell texts of one language apart
_CHINESE = {"yue", "wuu", "nan", "hak", "gan", "hsn"}  # languages that may stand behind `zh`
_ODD = {"ru@petr1708", "ach_ug"}  # spelling of 1708; the pseudo-language in which Crowdin marks strings


@lru_cache(maxsize=1 << 16)  # interface strings repeat: the English one of every language, "Password" in every part
def plain_text(text: str) -> str:
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
    """The code of this project for a `tag` (`pt_BR.UTF-8`, `sr@latin`, `zh-Hant`, `deu`, `sh`), None if it is none.

    ISO 639-1 where there is one, else 639-3; regions are dropped; a script is added where it is not the usual one:
    `zh` and `zh-hant`, `sr` and `sr-latn`. The tag names the script, or an old code's meaning does (`sh` is `sr-latn`),
    or the region (`zh_TW`). Portuguese of Brazil and of Portugal are one `pt`.
    """
    tag, likely = tag.strip().casefold(), get_global("likely_subtags")
    first, *parts = re.split(r"[-_@.]", tag)
    base, *more = (_ALIASES.get(first) or get_global("language_aliases").get(first, first)).casefold().split("_")
    parts, base = parts + more, _ALIASES.get(base, base)
    base = next((part for part in parts if base == "zh" and part in _CHINESE), base)
    if tag in _ODD or not re.fullmatch(r"[a-z]{2,3}", base):
        return None
    if base not in Locale("en").languages and base not in likely:
        return None
    scripts = [_SCRIPTS.get(part, part) for part in parts]
    scripts += [likely[key].split("_")[1].casefold() for part in parts if (key := f"{base}_{part.upper()}") in likely]
    own = next((script for script in scripts if script in _WRITTEN), None)
    return base if own in (None, _usual_script(base)) else f"{base}-{own}"


@cache
def resolve_language(said: str) -> str | None:
    """As `language`, or of a language's name in English or in itself, a script or a territory behind it:
    `German`, `日本語`, `Chinese (Simplified)`, `Portuguese, Brazil`."""
    if code := language(said):
        return code
    words, english = re.sub(r"[(),]", " ", said.casefold()).split(), Locale("en")
    further = {name.casefold(): code for code, name in [*english.territories.items(), *english.scripts.items()]}
    further |= {code.casefold(): code for code in further.values()} | {"": ""}
    for names in (lambda: {name.casefold(): code for code, name in english.languages.items()}, _own_names):
        known = names()
        for n in range(len(words), 0, -1):
            tag, rest = known.get(" ".join(words[:n])), " ".join(words[n:])
            if tag and rest in further:
                return language(f"{tag}-{further[rest]}")
    return None


@cache
def _own_names() -> dict[str, str]:
    """What languages call themselves → the locale. Reads all of CLDR: a second."""
    found: dict[str, str] = {}
    for name in sorted(localedata.locale_identifiers(), key=len):  # `zh` before `zh_Hant`
        locale = Locale.parse(name)
        own = None if locale.territory else locale.languages.get(name, locale.languages.get(locale.language))
        found.setdefault((own or "").casefold(), name)
    return found


@cache
def _usual_script(code: str) -> str:
    """The usual script of a language, as ISO 15924 in lower case (`latn` when CLDR does not say)."""
    base, _, script = code.partition("-")
    likely = get_global("likely_subtags").get(base, "").split("_")
    return script or (likely[1].casefold() if len(likely) > 1 else "latn")


def in_script(text: str, code: str) -> bool:
    """Whether `text` has a letter of a kind that `code` is written in: Latin or not Latin, no finer."""
    return (_LATIN if _usual_script(code) == "latn" else _NOT_LATIN).search(text) is not None


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
