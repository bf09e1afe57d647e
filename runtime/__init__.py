"""What a run needs and nobody edits: configuration, checkpoints, the device, the run folder."""
