#!/bin/sh
# torch 2.13.0: once a model has been wrapped in `DistributedDataParallel`, `destroy_process_group()` no longer ends the
# default group, wrapper deleted or not. The wrapper imports `torch._dynamo`, that imports `torch.distributed.nn`, and ten
# functions there have `group=group.WORLD` as a default, which is read at that moment and held for ever. With gloo its
# threads go on too, and a process whose threads outlive the interpreter aborts now and then at its very end. Whoever
# imports `torch.distributed.nn` before `init_process_group` gets None as the default, and a group that ends. (Linux)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy 2>/dev/null
cat > "$folder/group.py" <<'PY'
import gc
import os
import sys
import weakref

import torch
import torch.distributed as dist

if sys.argv[2] == "imported before":
    import torch.distributed.nn


def wrapped_once():
    """A step of a wrapped model, which is deleted on return."""
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
    model(torch.ones(4, 3)).sum().backward()
    return weakref.ref(model)


dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 1), rank=0, world_size=1)
model, group = wrapped_once(), weakref.ref(dist.group.WORLD)
dist.destroy_process_group()
gc.collect()
threads = sum("gloo" in open(f"/proc/self/task/{each}/comm", encoding="ascii").read()
              for each in os.listdir("/proc/self/task"))
print(f"{sys.argv[2]}: wrapper deleted {model() is None}, group deleted {group() is None}, gloo's threads {threads}",
      flush=True)
os._exit(0)  # without the interpreter's end
PY
for when in "not imported" "imported before"; do
    "$folder/venv/bin/python" "$folder/group.py" "$folder/store $when" "$when" 2>/dev/null
done | tee "$folder/seen"
[ "$(cat "$folder/seen")" = "not imported: wrapper deleted True, group deleted False, gloo's threads 3
imported before: wrapper deleted True, group deleted True, gloo's threads 0" ] || { echo "this has changed"; exit 1; }
