"""A method, a data set and a metric of your own, see docs/extend.md."""
