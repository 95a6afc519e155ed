"""What a mask knows about the data it was chosen on, in bits: exactly, or from samples.

`exact` runs an algorithm on every dataset of an enumerable law. For sampled masks, `law` groups
equal ones, and `plug_in`, `miller_madow`, `grassberger` and `chao_shen` estimate an entropy from
the counts. No estimate is clamped at 0.
"""

from nopr.information.entropies import chao_shen, entropy, grassberger, miller_madow, plug_in
from nopr.information.enumeration import exact
from nopr.information.laws import Law, choice_bits, law
from nopr.information.results import Exact

__all__ = [
    "Exact",
    "Law",
    "chao_shen",
    "choice_bits",
    "entropy",
    "exact",
    "grassberger",
    "law",
    "miller_madow",
    "plug_in",
]
