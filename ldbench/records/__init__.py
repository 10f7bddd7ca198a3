"""A cell's folder: written while it runs, checked for damage, read back as one table of all runs."""
