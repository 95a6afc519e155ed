"""The fault campaign: a small real job, hit by every fault that a long run has to survive.

`python -m campaign` (with `tests` on the path, as `make faults` does) runs all of it and prints the
table; `tests/test_faults.py` runs a short one.
"""
