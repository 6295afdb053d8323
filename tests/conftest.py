"""Settings shared by all tests: CPU only, no silent broadcasting between ranks, flags parsed, no window."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import matplotlib
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")
# Grain's worker processes read absl flags, which no test parses.
flags.FLAGS.mark_as_parsed()
