"""Run by hand; they print ratios of one run on one machine, and assert no time."""
