"""A data set in the raw format of nnU-Net."""
