"""The cells of an experiment: what they share, who runs which, in what order."""
