"""The demo: a generator of captioned scenes, a script that trains a small CLIP on them, and the trained checkpoint."""
