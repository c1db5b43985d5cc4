"""Where things go: what a plan decides, says and writes."""
