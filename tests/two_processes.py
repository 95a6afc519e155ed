"""One of two processes of `test_sweeps_scale`: sweeps its share and writes the results.

python two_processes.py OUT STORE PORT INDEX
"""

import pickle
import sys
from pathlib import Path

from nopr import processes

OUT, STORE, PORT, INDEX = sys.argv[1:]
processes.connect(coordinator=f"127.0.0.1:{PORT}", count=2, index=int(INDEX), patience_seconds=10)

import eight_devices  # noqa: E402 - JAX starts after the processes are connected
import jax  # noqa: E402
import numpy as np  # noqa: E402

from nopr import sweeps  # noqa: E402
from nopr.lab import records  # noqa: E402

found = {"count": processes.count(), "index": processes.index(), "said": []}
found["shared"] = processes.share(b"first" if processes.index() == 0 else b"ignored")
found["empty"] = processes.share(None)
found["gathered"] = processes.gather(b"\x00\xff" * (3 + processes.index()))
for batching in ("vmap", "lanes"):
    options = {"block": 4, "batching": batching}
    kept = records.Store(Path(STORE) / batching, context={}, say=found["said"].append)
    for store in (None, kept, kept):
        swept = sweeps.run(eight_devices.job, eight_devices.CASES, store=store, **options)
        found.setdefault(batching, []).append(eight_devices.bits(swept))
nan = sweeps.run(jax.numpy.log, np.arange(-3.0, 4.0, dtype=np.float32), block=2)
found["failures"] = nan.failures
try:
    sweeps.run(
        eight_devices.job,
        jax.tree.map(lambda leaf: leaf[processes.index() :], eight_devices.CASES),
        block=4,
    )
except ValueError as error:
    found["differs"] = str(error)
Path(OUT).write_bytes(pickle.dumps(found))
processes.disconnect()
