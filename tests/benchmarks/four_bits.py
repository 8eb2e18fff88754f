"""What 4 bits cost mE5-small: STSBenchmark, Tatoeba and SciFact, with and without prefixes, in fp32 and bf16.

    python tests/benchmarks/four_bits.py --hub ../shared/hub [--model me5-small-q4] [--dtypes bf16 fp32]
                                         [--protocols paper mteb] [--out runs/four-bits] [--check FOLDER]
                                         [--control FOLDER]

Runs what `me5 evaluate` runs, against a hub on the loopback address, and goes on where it was stopped; vectors stay
under --out. Every score stands beside the published one, in per cent.

A run fails (exit 1) where a score in bf16 under the paper's protocol is not within 0.1 of what this model had when it
was first measured (`FIRST`): a check that nothing changed, not of agreement with the paper. --check FOLDER does the
same for a folder that the model was exported to. --control FOLDER is a model in full precision (12 × 384, as E5-small):
it is evaluated as it is and with its matrices taken through 4 bits and back, so that the difference is the bits' alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

FIRST = {"STSBenchmark": 83.98, "Tatoeba": 65.26, "SciFact": 65.91}  # bf16, paper protocol, per cent
WITHIN = 0.1
TASKS = {"paper": ("STSBenchmark", "Tatoeba", "SciFact"), "mteb": ("STSBenchmark", "Tatoeba")}  # SciFact: one rule


def evaluate(place: str, out: Path, dtypes: Sequence[str], tasks: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every task under every protocol and dtype, as `me5 evaluate` does it: means over subsets, in per cent."""
    from me5lib.evaluate import benchmarks, runs
    from me5lib.evaluate.models import open_model

    for dtype in dtypes:
        opened = open_model(place, dtype=dtype, device="cpu")
        for protocol, names in tasks.items():
            runs.evaluate(opened, benchmarks.named_tasks(names), out, protocol=protocol,
                          command=" ".join(sys.argv))  # fmt: skip
    rows = runs.measured(out).query("metric == 'main_score' and revision == @opened.revision")
    return rows.groupby(["model", "dtype", "protocol", "task"], as_index=False)["value"].mean()


def published() -> dict[tuple[str, str], float]:
    """(protocol, task) → mE5-small's published score."""
    from me5lib.evaluate import paper

    english, table = paper.expected(3, "small").set_index("task")["value"], paper.tatoeba()
    return {("paper", "STSBenchmark"): english["STSBenchmark"], ("paper", "SciFact"): english["SciFact"],
            ("paper", "Tatoeba"): table["small_card_f1"].astype(float).mean(),
            ("mteb", "Tatoeba"): table["small_mtebrepo_f1"].astype(float).mean()}


def through_four_bits(folder: Path, to: Path) -> Path:
    """A copy of a BERT's folder whose table of tokens and matrices are what Q4_0 keeps of them."""
    import torch
    from safetensors.torch import load_file, save_file

    from me5lib.model import released

    if to.is_dir():
        return to
    shutil.copytree(folder, to)
    state = load_file(folder / "model.safetensors")
    layers = json.loads((folder / "config.json").read_text(encoding="utf8"))["num_hidden_layers"]
    for name, values in released.quantise_state(state, layers).items():
        if values.dtype == released.Q4:
            key = released.torch_name(name)
            state[key] = torch.from_numpy(released.dequantise(values)).view(state[key].shape)
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    return to


def main() -> int:
    """See above; the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hub", type=Path, required=True, help="folder with localhub.py and root/")
    options.add_argument("--model", default="me5-small-q4")
    options.add_argument("--out", type=Path, default=Path("runs/four-bits"))
    options.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"])
    options.add_argument("--protocols", nargs="+", default=list(TASKS), choices=list(TASKS))
    options.add_argument("--check", type=Path, help="a folder that the model was exported to")
    options.add_argument("--control", type=Path, help="a model in full precision")
    args = options.parse_args()
    sys.path.insert(0, str(args.hub))
    import localhub

    server, endpoint = localhub.serve(args.hub / "root")
    os.environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(args.out.resolve() / "hf"), "HF_HUB_OFFLINE": "0",
                   "HF_DATASETS_OFFLINE": "0", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    logging.getLogger("mteb").setLevel(logging.ERROR)  # its advice to take newer versions of the tasks
    warnings.simplefilter("ignore", UserWarning)
    checked = evaluate(args.model, args.out, args.dtypes, {protocol: TASKS[protocol] for protocol in args.protocols})
    if args.check:
        checked = pd.concat([checked, evaluate(str(args.check), args.out, ["bf16"], {"paper": TASKS["paper"]})])
    places = [args.control, through_four_bits(args.control, args.out / "control")] if args.control else []
    controls = [evaluate(str(place), args.out, args.dtypes[:1], {"paper": ("SciFact",)}) for place in places]
    server.shutdown()
    scores = pd.concat([checked, *controls])
    scores["published"] = [published().get(key) for key in zip(scores["protocol"], scores["task"], strict=True)]
    print(scores.to_string(index=False, float_format="{:.2f}".format))
    first = checked.query("dtype == 'bf16' and protocol == 'paper'")
    moved = [f"{row.model}: {row.task} {row.value:.2f}, not {FIRST[row.task]}" for row in first.itertuples()
             if abs(row.value - FIRST[row.task]) > WITHIN]
    print("\n".join(moved) or f"every bf16 score is within {WITHIN} of the first measurement")
    return bool(moved)


if __name__ == "__main__":
    sys.exit(main())
