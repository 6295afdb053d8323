"""Data preparation: clip tables, captions and training records from media files."""

# First of all: it handles Ctrl-C while a command's imports run.
import flowley_jax  # noqa: F401
