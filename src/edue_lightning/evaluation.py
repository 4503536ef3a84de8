"""One evaluation for all methods: metrics, tables, calibration curve and pictures of one split."""

from __future__ import annotations
