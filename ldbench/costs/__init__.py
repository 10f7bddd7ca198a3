"""What a training step costs at every cut, in seconds, FLOPs and joules, and which cut pays."""
