"""The asv suite: asv imports every file here beside older commits too, with ldbench's own dependencies alone."""
