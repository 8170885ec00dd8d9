"""KVM by its ioctls, the loop that runs a vCPU, and the tables that its exits are looked up in."""
