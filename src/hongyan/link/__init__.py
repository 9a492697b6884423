"""What the gateway and the engine say to each other."""
