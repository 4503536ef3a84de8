"""A folder with a table of its images and masks."""
