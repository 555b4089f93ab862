"""The demo: a generator of captioned scenes, a script to train a small CLIP on them, and the trained checkpoint."""
