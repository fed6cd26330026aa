"""Detectors of other projects, made into checkpoints of ours. Needs torch."""
