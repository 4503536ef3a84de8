"""Training: fit a method, keep it resumable, log its curves."""
