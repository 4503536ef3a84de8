"""Masks, disagreement maps and triage for new images."""
