"""A user's own folder of images and masks, with a table of them."""
