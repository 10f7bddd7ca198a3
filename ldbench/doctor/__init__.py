"""What this machine can do: interpreter, torch, GPU, Triton, meters, data sets, memory and disk, each thing tried.

``checks.doctor`` runs all checks; none relies on another, so on a broken installation the rest still speaks.
"""
