"""A model cut into stages on its ``torch.fx`` graph, and what a stage costs in FLOPs.

``split.split_stages`` traces the model, finds the places to cut, and returns the stages in order: each a module that
takes the output of the one before.
"""
