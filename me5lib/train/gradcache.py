"""A step over a batch of any size in the memory of one piece of it (GradCache: Gao et al. 2021), and what it saves.

    loss = cached_step(encoder, token_ids, loss_of, token_budget=8_192, seed=mix(seed, step, rank))

The loss sees every vector of the batch, the backbone only one piece at a time: (1) embed all pieces without a graph,
(2) the loss and its gradient with respect to the vectors, (3) embed each piece again, now with a graph, and push its
part of that gradient through. Texts are sorted by length and cut by a budget of tokens, so that little is padding. A
piece's dropout is drawn from its own seed: replaying it needs no stored state.

Cost: nearly every forward twice (up to a third more arithmetic), the graph of one piece instead of all. While all
pieces' graphs fit into memory, `keep_graph=True` is faster and has the same gradient: sorted pieces, no replay.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from me5lib.device import seeded
from me5lib.io import Me5Error

Ids = Sequence[Sequence[int]]


def cached_step(
    encoder: Callable[[Ids], Tensor], token_ids: Ids, loss_of: Callable[[Tensor], Tensor],
    token_budget: int, seed: int, keep_graph: bool = False, last: bool = True,
) -> Tensor:
    """The loss of a batch (detached); its gradient is added to the `.grad` of the encoder's parameters.

    `encoder` maps n lists of token ids to vectors [n, d]; `loss_of` maps the vectors of the whole batch, in the order
    of `token_ids`, to a scalar. `token_budget` bounds the padded tokens of a piece; `seed` stands for (seed, step,
    rank): see `mix`. With `keep_graph` nothing is replayed. Under DistributedDataParallel the gradient is reduced once,
    with the last piece, and only if `last` (of accumulated batches the last is). There ranks must meet at the same
    collectives in the same order, and a forward with gradient has some: so a single piece is replayed too, unless all
    ranks give `keep_graph`, with a single piece each.
    """
    cut = pieces([len(ids) for ids in token_ids], token_budget)
    order = torch.tensor([i for piece in cut for i in piece], dtype=torch.int64).argsort()
    parallel = hasattr(encoder, "no_sync")  # DistributedDataParallel's
    no_sync = encoder.no_sync if parallel else nullcontext

    def embed(k: int) -> Tensor:
        with seeded(mix(seed, k)):
            return encoder([token_ids[i] for i in cut[k]])

    # The last piece's graph can wait for the loss on a CPU, where a replay will want that memory next. A GPU's memory
    # is filled so far that the loss's own might not fit beside it.
    replay_last = parallel or (len(cut) > 1 and torch.cuda.is_available())
    replayed = 0 if keep_graph else len(cut) - (not replay_last)
    with torch.no_grad():
        vectors = [embed(k) for k in range(replayed)]
    torch.clear_autocast_cache()  # older torch would reuse the weights cast in the first pass, which have no gradient
    with no_sync() if replayed or not last else nullcontext():
        kept = [embed(k) for k in range(replayed, len(cut))]
        leaves = torch.cat([*vectors, *(part.detach() for part in kept)])[order].requires_grad_()
        loss = loss_of(leaves)
        loss.backward()
        if kept:
            torch.cat(kept).backward(leaves.grad[[i for piece in cut[replayed:] for i in piece]])
            del kept
    for k in range(replayed):
        with nullcontext() if last and k == replayed - 1 else no_sync():
            embed(k).backward(leaves.grad[cut[k]])
    return loss.detach()


def fitting_budget(attempt: Callable[[int], object], first: int, least: int = 1_024) -> int:
    """The largest of `first`, `first` / 2, `first` / 4 … padded tokens for which `attempt` does not run out of memory.

    Raises `Me5Error` when not even `least` fits.
    """
    while first >= least:
        try:
            attempt(first)
            return first
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            first //= 2
    raise Me5Error(f"not even {least:,} tokens at once fit into this GPU's memory: "
                   "choose a smaller scale, or shorter texts (--set train.passage_tokens=64)")


def pieces(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of all texts, shortest first, cut so that a piece's texts × its longest ≤ `token_budget` tokens.

    A text longer than the budget is a piece of its own. No texts: one empty piece.
    """
    cut: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if cut[-1] and (len(cut[-1]) + 1) * lengths[i] > token_budget:
            cut.append([])
        cut[-1].append(i)
    return cut


def mix(*parts: int) -> int:
    """One 63-bit seed out of several integers, the same on every machine."""
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=8).digest(), "little") >> 1


class GraphMeter:
    """Counts the bytes that autograd keeps for the backward pass: `with GraphMeter(parameters).watch() as meter: …`.

    `meter.peak` is exact and the same on every machine, unlike the memory of a process. A storage is counted once
    however many views of it are kept, and the given parameters, which are there anyway, not at all.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        self.now = self.peak = 0
        self._free = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._holders: Counter[int] = Counter()

    @contextmanager
    def watch(self) -> Iterator[GraphMeter]:
        """Count what is kept by the operations inside the block."""
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor):
            yield self

    def add(self, storage: torch.UntypedStorage, holders: int) -> None:
        """One holder more (1) or fewer (-1) of `storage`."""
        pointer = storage.data_ptr()
        before = self._holders[pointer]
        self._holders[pointer] += holders
        if pointer not in self._free and 0 in (before, before + holders):
            self.now += holders * storage.nbytes()
            self.peak = max(self.peak, self.now)


class _Kept:
    """A tensor kept by the graph; tells the meter when the graph lets go of it."""

    def __init__(self, meter: GraphMeter, tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor
        meter.add(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.meter.add(self.tensor.untyped_storage(), -1)
