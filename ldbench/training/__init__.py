"""One cell: optimizer, loop, evaluation, checkpoint, result."""
