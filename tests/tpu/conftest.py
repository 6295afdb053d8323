"""Set-up of the tests that compile for TPUs."""

import jax
import pytest


@pytest.fixture(autouse=True)
def without_compilation_cache():
    """Programs for devices that are not there can be written to JAX's cache and not read from it."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
