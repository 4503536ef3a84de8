"""Nodules of LIDC-IDRI as published slices: pictures of CT crops beside the masks of four readers."""
