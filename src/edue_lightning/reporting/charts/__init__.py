"""Charts of a report: described once, drawn as files and as interactive figures of the page."""
