"""Adapters and whole models as people keep them: loaded, merged, written and verified."""
