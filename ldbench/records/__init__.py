"""A cell's folder: written, checked, read."""
