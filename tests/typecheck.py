"""The type checker that tests put around the core packages: whole numbers pass for floats (PEP 484)."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
