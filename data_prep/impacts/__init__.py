"""Generated clips of visible impacts with the true times of their sounds: a benchmark of synchrony."""
