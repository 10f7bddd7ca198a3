"""What is to be run: options, checked and expanded into cells. Imports no torch."""
