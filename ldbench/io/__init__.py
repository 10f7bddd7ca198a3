"""Files: written atomically, checksummed, locked."""
