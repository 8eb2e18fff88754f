"""Three kills of many: `prove_crash.py` does them all. The same loss, to the bit, in every step."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import prove_crash
import pytest
from prove_crash import Fault


def test_three_kills_leave_no_trace_and_the_comparison_sees_a_last_bit(tmp_path):
    straight = tmp_path / "straight"
    names = prove_crash.killed(straight, Fault())
    save = prove_crash.save_of(names, 6)
    assert {"write", "safetensors", "sync", "rename", "remove"} == {names[number - 1].split()[0] for number in save}
    rename = max(number for number in save if names[number - 1] == "rename checkpoints/.step-000006.part")
    half = next(number for number in save if names[number - 1].endswith("part/optimiser.safetensors"))
    faults = [Fault("moment", 5, 0.01), Fault("operation", rename), Fault("torn", half)]
    places = [tmp_path / fault.kind for fault in faults]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(prove_crash.killed, places, faults))
    assert [prove_crash.kept(place) for place in places] == [4, 4, 4]
    assert not (places[1] / "checkpoints" / "step-000006").exists()
    assert (places[1] / "checkpoints" / ".step-000006.part").exists()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(prove_crash.killed, places, [Fault()] * 3))
    for place in places:
        prove_crash.same(place, straight)
    copy = shutil.copytree(straight, tmp_path / "copy")
    log, loss = copy / "log.jsonl", prove_crash.rows(copy)[-2]["loss"]
    log.write_text(log.read_text(encoding="utf8").replace(repr(loss), repr(loss + 2**-50)), encoding="utf8")
    with pytest.raises(AssertionError):
        prove_crash.same(copy, straight)
