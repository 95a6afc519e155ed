"""Single weights."""

from __future__ import annotations

from nopr import masks as masks_
from nopr import trees
from nopr.granularity.shared import Granularity
from nopr.typing import Masks, Scores


def unstructured() -> Granularity:
    """Single weights: each is its own granule."""

    def expand(granule_masks: Masks, like: Scores) -> Masks:
        masks_.check_bool(granule_masks, name="granule_masks")
        trees.check_same(granule_masks, like, name="granule_masks", other="like")
        return granule_masks

    return Granularity(pool=lambda scores: scores, expand=expand, name="unstructured")
