"""What comes out: fingerprint, commit, resume, run.json, reading back."""
