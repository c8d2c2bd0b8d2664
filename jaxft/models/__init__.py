"""What the network is: its description, its modules, and the families that map onto it."""
