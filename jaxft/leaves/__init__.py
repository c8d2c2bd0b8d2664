"""The paths of leaves, and the kinds of leaves that adapters add to a model."""
