"""What others read: layouts of other tools, made from the selected rows of a finished dataset."""
