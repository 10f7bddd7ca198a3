"""The asv suite. asv imports every file of this folder beside older commits too, with ldbench's own dependencies alone."""
