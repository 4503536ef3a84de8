"""A method and a data set of one's own, see docs/extend.md."""
