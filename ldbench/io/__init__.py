"""Files that survive what happens to them: written whole or not at all, checksummed, locked.

``tensors`` keeps nested state in a safetensors file and is the only module here that imports torch.
"""
