"""Segmentation models whose heads disagree where experts disagree (EDUE), and the baselines to compare with."""

from importlib.metadata import version

__version__ = version("edue-lightning")
