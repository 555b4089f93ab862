"""Worker processes: the resources of their machine, how they end, and the runner's options about them."""
