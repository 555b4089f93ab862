"""Through the model: batches in, batches out. Plain functions that know nothing of Beam, files or commits."""
