"""Worker processes: what their machine has, who ends with whom, and what Beam's options say of them."""
