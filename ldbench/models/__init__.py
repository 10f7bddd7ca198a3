"""Networks by name, fitted to the images, with their recipes and the weights they begin with."""
