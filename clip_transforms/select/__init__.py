"""Rows of a finished dataset: which of them are kept, and by what."""
