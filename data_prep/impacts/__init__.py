"""Generated clips of visible events that make sounds, with the true event times: a benchmark of synchrony."""
