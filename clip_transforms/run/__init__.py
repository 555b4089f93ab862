"""One run: settings → plan → begin → units → end."""
