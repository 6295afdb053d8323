"""The folder, weights, averages and adapters of a run."""
