"""The activation store: the output of dropped stages for every sample, read in place of the images."""
