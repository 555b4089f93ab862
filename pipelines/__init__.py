"""The commands: `python -m pipelines.<name>`. Flags, wiring, exit codes and the last printed lines."""
