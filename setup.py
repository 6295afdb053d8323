"""Packages of the wheel; everything else is declared in pyproject.toml."""

from setuptools import find_packages, setup

# Configurations stay at the top level of the repository, and are installed inside the package.
setup(
    packages=[*find_packages(include=["flowley_jax*", "data_prep*"]), "flowley_jax.configs"],
    package_dir={"flowley_jax.configs": "configs"},
)
