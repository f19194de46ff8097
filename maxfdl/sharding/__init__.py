"""The device mesh, and the rules from logical dims of arrays to its axes."""
