"""Scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

import numpy as np

from nopr.data.arrays import Raw, Split, holdout

TEST_EXAMPLES = 360
_TEST_SEED = 1797


def read() -> Raw:
    """The 1,797 images of 8x8 pixels from 0 to 16, in ten classes.

    The set has no official parts. A fixed 360, in proportion to the classes, are for testing; 1,437
    remain for training and validation.
    """
    from sklearn.datasets import load_digits  # takes a second, so only when needed

    pixels, target = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(target, np.int32)
    test = holdout(labels, TEST_EXAMPLES, seed=_TEST_SEED)
    return Raw(
        Split(images[~test], labels[~test]), Split(images[test], labels[test]), classes=10, white=16
    )
