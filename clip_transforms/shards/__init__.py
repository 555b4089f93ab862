"""The input side: units and their readers. All of them yield record batches of `schemas.samples`."""
