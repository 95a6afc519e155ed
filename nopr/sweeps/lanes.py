"""Placeholder until merged."""

import jax

VERSION = 1
vmap = jax.vmap
