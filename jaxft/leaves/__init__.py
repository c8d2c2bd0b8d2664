"""What the path of a leaf says, and the kinds of leaves that adapters add to a model."""
