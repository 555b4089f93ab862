"""Through the model: batches in, batches out. Plain functions without Beam, files or commits."""
