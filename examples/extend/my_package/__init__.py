"""A method, a data set, a loss and a metric of your own, see docs/extend.md."""
