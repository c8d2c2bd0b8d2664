"""From a recipe to a plan: everything that is decided before the first step."""
