"""Layer dropping in training loops that are not the user's: thin layers over ``LayerDropper``, one file per library."""
