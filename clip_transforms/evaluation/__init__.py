"""What an evaluation is asked for, and what it reads of a dataset: truth, groups, classes, vectors."""
