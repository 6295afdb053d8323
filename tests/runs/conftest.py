"""Runs that the tests of this folder start from, read and never change."""

import pytest
import tiny

from flowley_jax.training.loop import train


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    return tiny.write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="session")
def source(records, tmp_path_factory):
    """Train the run whose weights the others start from."""
    workdir = tmp_path_factory.mktemp("source")
    train(tiny.experiment(records), workdir)
    return workdir


@pytest.fixture(scope="session")
def adapted(records, source, tmp_path_factory):
    """Fine-tune the source by LoRA."""
    workdir = tmp_path_factory.mktemp("adapted")
    train(tiny.fine_tuning(records, source, lora=tiny.LORA), workdir)
    return workdir
