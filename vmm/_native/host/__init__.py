"""What the kernel gives any program: descriptors, threads, locks, signals."""
