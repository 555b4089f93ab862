"""A page to search in: the dataset in memory, what is asked of it, and the server that answers a browser."""
