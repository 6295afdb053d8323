"""Settings of the tests that compile for TPUs."""

import jax
import pytest


@pytest.fixture(autouse=True)
def without_compilation_cache():
    """Turn JAX's cache off: it can store programs for devices that are missing here, but not load them."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
