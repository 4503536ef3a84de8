"""Photographs of the retina with vessels outlined by two observers: CHASE_DB1, STARE and DRIVE."""
