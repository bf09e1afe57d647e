"""Scripts of single studies, and the log of experiments (LOG.md)."""
