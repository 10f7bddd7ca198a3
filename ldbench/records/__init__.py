"""Records: a cell's folder, written while it runs and checked for damage; a file packed of all; both read as one table."""
