"""A model cut into stages on its ``torch.fx`` graph, and what a stage costs in FLOPs."""
