"""The demonstration: generate clips, prepare records, train, sample, score, write the report."""
