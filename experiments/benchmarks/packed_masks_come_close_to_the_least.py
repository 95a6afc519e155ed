"""A packed file of masks takes close to the least that it can, and a second to write and read.

Masks of 14.7 million weights in three leaves, kept at random at several densities, and once in
whole filters: by `export.save_masks`, whose files are synced and sealed; by `numpy.packbits` and
zlib at its default level; and by `numpy.savez_compressed`. All must give back the same bits. The
least that masks of random choice can take is log2 C(n, k) bits a leaf. Goals: at most 2% and 64
bytes a leaf above it, and at most 10 s each way. One minute.

    python -m experiments.benchmarks.packed_masks_come_close_to_the_least
"""

from __future__ import annotations

import math
import statistics
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks._timing import seconds
from experiments.benchmarks.top_is_faster_than_sorting import SHAPES
from nopr import export, information

DENSITIES, REPEATS = (0.001, 0.01, 0.1, 0.5), 3
FILTERS = 0.5

Masks = dict[str, np.ndarray]


class Way(NamedTuple):
    """One way to write and read masks."""

    save: Callable[[Masks, Path], object]
    load: Callable[[Path, Masks], Mapping[str, np.ndarray]]


def main(
    *,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    densities: Sequence[float] = DENSITIES,
    repeats: int = REPEATS,
) -> None:
    """Prints the table.

    Args:
      shapes: Shape of each mask.
      densities: Densities of the masks that are kept at random.
      repeats: Timed calls of each way.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    print(f"masks of {sum(sizes):,} weights in {len(sizes)} leaves")
    print(f"{'':28}{'bytes':>11}{'/ least':>9}{'save s':>8}{'load s':>8}{'size':>9}{'time':>7}")
    rng = np.random.default_rng(0)
    for density in densities:
        kept = {
            name: rng.permutation(size) < round(density * size)
            for (name, size) in zip(shapes, sizes, strict=True)
        }
        kept = {name: kept[name].reshape(shape) for name, shape in shapes.items()}
        _print_rows(f"density {density:g}, at random", kept, repeats)
    filters = {
        name: np.broadcast_to(rng.permutation(shape[-1]) < FILTERS * shape[-1], shape)
        for name, shape in shapes.items()
    }
    _print_rows(f"density {FILTERS:g}, whole filters", filters, repeats)
    print("`size` and `time` (save and load) are ratios to export.save_masks")
    print("goal: random masks at most 1.02 of the least and 64 bytes a leaf; at most 10 s each way")


def _print_rows(title: str, kept: Masks, repeats: int) -> None:
    """The ways take turns, so that a slow moment hits all of them."""
    least = sum(
        information.choice_bits(mask.size, int(np.count_nonzero(mask))) for mask in kept.values()
    )
    found, times = {}, {name: ([], []) for name in WAYS}
    print(f"{title}: at least {math.ceil(least / 8):,} bytes without a structure")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks"
        for _ in range(repeats):
            for name, way in WAYS.items():
                times[name][0].append(seconds(lambda way=way: way.save(kept, path)))
                found[name] = path.stat().st_size
                times[name][1].append(seconds(lambda way=way: way.load(path, kept)))
                _check_same(name, way.load(path, kept), kept)
    medians = {name: [statistics.median(each) for each in pair] for name, pair in times.items()}
    size, took = next(iter(found.values())), sum(next(iter(medians.values())))
    for name, (saving, loading) in medians.items():
        print(
            f"  {name:26}{found[name]:11,}{8 * found[name] / least:9.4f}{saving:8.2f}"
            f"{loading:8.2f}{found[name] / size:9.2f}{(saving + loading) / took:7.2f}"
        )


def _check_same(name: str, loaded: Mapping[str, np.ndarray], kept: Masks) -> None:
    if any(not np.array_equal(loaded[leaf], mask) for leaf, mask in kept.items()):
        raise RuntimeError(f"{name} gave other masks back.")


def _save_deflated(kept: Masks, path: Path) -> None:
    flat = np.concatenate([mask.reshape(-1) for mask in kept.values()])
    path.write_bytes(zlib.compress(np.packbits(flat).tobytes()))


def _load_deflated(path: Path, like: Masks) -> Masks:
    packed = np.frombuffer(zlib.decompress(path.read_bytes()), np.uint8)
    ends = np.cumsum([mask.size for mask in like.values()])
    flat = np.split(np.unpackbits(packed, count=int(ends[-1])).view(bool), ends[:-1])
    return {
        name: part.reshape(mask.shape)
        for (name, mask), part in zip(like.items(), flat, strict=True)
    }


def _save_npz(kept: Masks, path: Path) -> None:
    arrays: Any = kept  # which might be named like an option
    with open(path, "wb") as file:  # a path would get the suffix .npz
        np.savez_compressed(file, **arrays)


def _load_npz(path: Path, like: Masks) -> Masks:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in like}


WAYS = {
    "export.save_masks": Way(export.save_masks, lambda path, like: export.load_masks(path)),
    "np.packbits + zlib": Way(_save_deflated, _load_deflated),
    "np.savez_compressed": Way(_save_npz, _load_npz),
}

if __name__ == "__main__":
    main()
