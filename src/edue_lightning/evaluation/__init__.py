"""Measurement of a trained method, or of anybody's predictions."""
