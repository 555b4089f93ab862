"""Numbers in, numbers out: accuracy, average precision, recall at k, a linear probe, intervals. It knows no dataset.

NumPy and scikit-learn only. Each docstring has the definition and its source.
"""
