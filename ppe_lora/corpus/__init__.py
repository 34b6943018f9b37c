"""From nothing to train, valid and test rows: sampling, teachers, filters, split, imports, statistics."""
