"""What is trained: which modules are adapted, how adapters begin, and PEFT's file format."""
