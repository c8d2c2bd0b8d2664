"""What is trained: which modules are adapted, the mask, and how adapters start."""
