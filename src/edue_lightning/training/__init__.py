"""Training: the fit of a method, its resumption, validation and curves."""
