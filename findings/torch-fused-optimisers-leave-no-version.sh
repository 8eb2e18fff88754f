#!/bin/sh
# torch 2.13.0: an optimiser with `fused=True` (AdamW, Adam, SGD, Adagrad) changes weights without counting their version
# (`tensor._version`) up; the same optimiser without it does. So
# * autograd does not notice that a weight which it saved has changed: a backward pass behind the step gives the gradient
#   of a mixture of old and new weights, where otherwise it raises "modified by an inplace operation";
# * whatever keeps something derived of weights (a quantised copy, a merged matrix) and asks their version whether it
#   still holds is never told.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch

seen = {}
for name in ("AdamW", "Adam", "SGD", "Adagrad"):
    for fused in (False, True):
        weight = torch.nn.Parameter(torch.ones(4))
        loss = (weight * weight).sum()  # saves the weight for its gradient, 2 · weight
        optimiser = getattr(torch.optim, name)([weight], lr=0.5, fused=fused)
        weight.grad, version = torch.ones(4), weight._version
        optimiser.step()
        changed = bool((weight != 1).all())
        counted = weight._version > version
        weight.grad = None
        try:
            loss.backward()
            gradient = weight.grad[0].item()
        except RuntimeError as error:
            gradient = "raises" if "modified by an inplace operation" in str(error) else str(error)
        seen[name, fused] = changed, counted, gradient
        print(f"{name:8} fused={fused!s:5}  changed {changed}  version counted {counted}  backward afterwards: {gradient}")
for (name, fused), (changed, counted, gradient) in seen.items():
    assert changed and counted is not fused, f"this has changed: {name} {fused}"
    assert (gradient == "raises") is not fused, f"this has changed: {name} {fused} {gradient}"
print("as described: fused steps are not counted, and a backward pass behind one gives no error")
PY
