"""Competition folders, folds and encoded batches: everything that happens before training."""
