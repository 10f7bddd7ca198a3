"""``LayerDropper``: watches the stages of a network in training, decides, and drops them."""
