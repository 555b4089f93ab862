"""What goes in: units and their readers. Everything yields record batches of `schemas.samples`."""
