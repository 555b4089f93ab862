"""Zero-shot labels: class embeddings, the labels of a batch, the labels of a part."""
