"""What jaxft does beside training: generate, export, inspect, adapter tools and data reports."""
