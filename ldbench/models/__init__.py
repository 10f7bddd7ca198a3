"""Networks by name, fitted to the images, with their recipes and the weights they begin with.

``zoo.build_model`` makes a network from a ``fit.ModelSpec``: an architecture of torchvision, or the user's own factory.
"""
