"""What rows are, and how values of all shapes and marks become rows."""
