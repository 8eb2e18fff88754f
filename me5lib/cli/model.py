"""`me5 export`: a checkpoint as others load it, checked, with a model card. `me5 encode`: the vectors of a file.

The folder holds safetensors, JSON, a README and, with --onnx, `onnx/model.onnx`. Before it takes its place,
sentence-transformers, transformers and onnxruntime each load it and encode texts of many scripts; where one of them
gives another vector than me5 (by more than 1e-4), nothing is written. Cost: seconds for tiny, a minute for base.
"""

from __future__ import annotations

import re
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from me5lib.cli import ScaleName, split_names
from me5lib.cli.train import Encoding
from me5lib.config import RELEASED
from me5lib.io import Me5Error
from me5lib.model import card as model_card
from me5lib.model.card import About, CitedSource

if TYPE_CHECKING:
    from me5lib.evaluate.models import Opened
    from me5lib.model.encoder import Encoder


def export_command(
    model: Annotated[str, typer.Option(help="A checkpoint folder, a hub id, or me5-small-q4.")],
    to: Annotated[Path, typer.Option(help="The folder to write; an earlier export in it is replaced.")],
    revision: Annotated[str, typer.Option(help="Commit, branch or tag of a hub id.")] = "",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write onnx/model.onnx too (extra `export`).")] = False,
    name: Annotated[str, typer.Option(help="The model's name on its card (default: the folder's).")] = "",
    results: Annotated[Path | None, typer.Option(help="Results of `me5 evaluate --out`, for the card.")] = None,
    data: Annotated[str, typer.Option(help="Data cards it was trained on (default: as the folder says).")] = "",
    license: Annotated[str, typer.Option(help="Its licence, as the hub writes it: mit, apache-2.0 …")] = "",
    instruction: Annotated[str, typer.Option(help="Of an instruct model: the prompt of queries.")] = "",
    languages: Annotated[str, typer.Option(help="Cut the vocabulary to what the packs' training texts "
                                                  "in these use, as en,de,sw.")] = "",
    text: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="With --languages: plain text whose "
                                             "tokens stay, too; may be given again.")] = [],  # noqa: B006
    scale: ScaleName = "tiny",
) -> None:
    """Write a model for sentence-transformers, transformers and ONNX, checked, with a model card."""
    if to.exists() and (not to.is_dir() or (any(to.iterdir()) and not (to / "modules.json").is_file())):
        raise Me5Error(f"{to} exists and is no earlier export: choose another --to")
    if to.exists() and to.resolve() == Path(model).expanduser().resolve():
        raise Me5Error(f"{to} is the model itself: choose another --to")
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise Me5Error(f"--license {license!r} is no identifier of the hub: write it as mit, apache-2.0 or other")
    if onnx:
        from me5lib.model.export import ready

        ready()
    from me5lib.evaluate import models
    from me5lib.model.export import export_model

    opened = models.open_model(model, revision=revision, device="cpu")
    about = about_model(opened, model, name or to.name, data, license, instruction)._replace(onnx=onnx)
    if results is not None:
        about = about._replace(results=_result_rows(results, opened))
    encoder = opened.encoder.encoder
    if languages or text:
        encoder, about = _cut(encoder, about, split_names(languages), text, scale)
    print(export_model(encoder, to, about))
    print(f"{about.name}: {to}")


def encode_command(
    file: Annotated[Path, typer.Argument(help="Texts: lines (.txt), .jsonl, .csv or .parquet.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write; a killed command goes on.")],
    model: Annotated[str, typer.Option(help="A checkpoint folder, a hub id, or me5-small-q4.")] = RELEASED[0],
    prefix: Annotated[str, typer.Option(help="query, passage, or text to put before each.")] = "passage",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8, binary (at the median) or binary-zero.")] = "fp32",
    column: Annotated[str, typer.Option(help="The column of texts; .txt has none.")] = "text",
    encoding: Encoding = "utf8",
) -> None:
    """Write the vectors of a file's texts, in up to a 32nd of the bytes, with what they were made with."""
    from me5lib import device
    from me5lib.data.userdata import read_texts
    from me5lib.evaluate import models, vectors
    from me5lib.model.text import PASSAGE, QUERY

    texts, before = read_texts(file, column, encoding), {"query": QUERY, "passage": PASSAGE}.get(prefix, prefix)
    opened = models.open_model(model, dtype=device.precision(device.best_device()).name)
    vectors.write_vectors(opened, texts, before, precision, out, sys.stderr.isatty())
    print(f"{len(texts):,} vectors, {precision}: {out}")


def _cut(encoder: Encoder, about: About, names: list[str], files: list[Path], scale: str) -> tuple[Encoder, About]:
    """The encoder cut to the tokens of languages and of the lines of `files`, with its card; prints what is lost."""
    import pandas as pd

    from me5lib import config
    from me5lib.data.corpus import evaluation_texts, open_corpus
    from me5lib.model import shrink

    corpus = open_corpus(config.load(scale))
    chosen = {code: corpus.training_texts(code) for code in names}
    if (bare := [code for code, texts in chosen.items() if not texts]) and not files:
        raise Me5Error(f"the packs have no text in {', '.join(bare)} (codes as en, sw, zh-hant): add some, --text FILE")
    lines = (line for path in files for line in path.open(encoding="utf8", errors="replace"))
    single = shrink.characters(encoder, chosen.values())
    texts = chain(about.prompts.values(), single, *chosen.values(), lines)
    cut = shrink.cut_vocabulary(encoder.copy(), texts).trained_further()
    if tests := {key: texts for key, texts in evaluation_texts(corpus).items() if key[1] in chosen}:
        changed = 100 * pd.DataFrame(shrink.dropped_shares(encoder, cut, tests)).T["changed"].unstack(0)
        print("texts with a token that was dropped, of those that evaluate (they chose none), per cent:",
              changed.to_string(float_format="{:.1f}".format, na_rep=""), sep="\n")
    tokens, sizes = [len(each.tokenizer) for each in (encoder, cut)], [  # of weights in fp32, and of tokenizer.json
        4e-6 * each.backbone.num_parameters() + len(each.tokenizer.backend_tokenizer.to_str(pretty=True).encode()) / 1e6
        for each in (encoder, cut)]  # fmt: skip
    said = (f"The vocabulary was cut to what texts in {', '.join(chosen) or 'a file'} use: {tokens[0]:,} tokens to "
            f"{tokens[1]:,}, {sizes[0]:.0f} MB to {sizes[1]:.0f}. A text whose every token stayed keeps its vector.")
    print(said)
    return cut, about._replace(cut_to=tuple(chosen), notice=f"{said}\n\n{about.notice}")


def about_model(opened: Opened, model: str, name: str, data: str = "", license: str = "",
                instruction: str = "") -> About:
    """What the card says of an opened model. Raises `Me5Error` for one that is no E5, and for an unknown data card."""
    from me5lib.data import cards
    from me5lib.evaluate.models import E5, KNOWN
    from me5lib.model import released, save_load
    from me5lib.model.resolve import read_model_files, resolve, stage_settings

    if not isinstance(opened.encoder, E5):
        raise Me5Error(f"{opened.name} is no E5: me5 exports models with average pooling and prefixes or instructions")
    if instruction and not opened.instruct:
        raise Me5Error(f"{opened.name} reads prefixes, not instructions: leave --instruction out")
    prompts = save_load.instruct_prompts(instruction or save_load.INSTRUCTION) if opened.instruct else save_load.PROMPTS
    encoder, names = opened.encoder.encoder, split_names(data)
    if (ref := resolve(model)).kind == "folder":
        base, start = model_card.base_of(stage_settings(Path(ref.name)).get("settings", {}))
        names = names or model_card.trained_on(Path(ref.name))
        if opened.instruct and not instruction:
            prompts = prompts | read_model_files(Path(ref.name)).prompts
    else:
        base, start = opened.name, ""
        by_authors = "/multilingual-e5-" in (opened.published or opened.name)
        tables = (1, 2, None) if opened.instruct else (1, 2)  # of the paper; an instruct model has its own mixture too
        names = names or [each for each, about in cards.hub().items() if by_authors and about.paper
                          and about.paper.table in tables]
    in_four_bits = getattr(encoder.backbone.config, "derived_from", "").startswith(released.NAME)
    if in_four_bits:
        base, license = released.HUB_ID, license or "mit"
    return About(
        name, encoder.width, encoder.max_tokens, dict(prompts), base_model=base, start=start,
        license=license or ("mit" if opened.name in KNOWN else model_card.UNKNOWN),  # so say the authors' cards
        sources=tuple(cited(each, strict=bool(data)) for each in names),
        notice=released.NOTICE.read_text(encoding="utf8") if in_four_bits else "",
    )  # fmt: skip


def cited(name: str, strict: bool) -> CitedSource:
    """What a data card says; the bare name for one's own file, which has none (`strict`: `Me5Error`)."""
    from me5lib.data import cards

    if name not in cards.card_names() and not strict:
        return CitedSource(name)
    card = cards.load_card(name)
    repositories = tuple(dict.fromkeys(hub.repository for hub in card.hub))
    return CitedSource(name, card.title, card.licence, card.homepage, tuple(card.languages), repositories)


def _result_rows(folder: Path, opened: Opened) -> tuple:
    """The measured rows of this very model and revision, for the card."""
    from me5lib.evaluate import runs

    if not folder.is_dir():
        raise Me5Error(f"no results folder {folder}: give the --out of `me5 evaluate`")
    measured = runs.measured_values(folder)
    mine = measured[(measured["model"] == opened.name) & (measured["revision"] == opened.revision)]
    if mine.empty:
        pairs = measured[["model", "revision"]].drop_duplicates().itertuples(index=False)
        there = ", ".join(f"{name} at {revision[:12]}" for name, revision in pairs) or "none at all"
        raise Me5Error(f"{folder} has no results of {opened.name} at {opened.revision[:12]} ({there}): evaluate this "
                       "model, or leave --results out")
    return model_card.result_rows(mine)
