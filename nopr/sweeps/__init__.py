"""One pure function over many cases: seeds, datasets, densities; on one core or many hosts.

Cases are vmapped in blocks of a fixed size, which determines the last bits of the results. The
blocks run on all devices of the mesh axis `runs`. A chunk is a whole number of blocks and is stored
as soon as it is finished, so that a killed sweep resumes where it stopped. With several processes,
each computes its share of the chunks, and all of them get all results.
"""

from nopr.sweeps.cases import case_count
from nopr.sweeps.engine import Swept, run
from nopr.sweeps.lanes import vmap as vmap_lanes
from nopr.sweeps.programs import Batching
from nopr.sweeps.stored import Store

__all__ = ["Batching", "Store", "Swept", "case_count", "run", "vmap_lanes"]
