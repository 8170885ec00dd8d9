"""Benchmarks of any VMM by a command template; imports nothing that opens /dev/kvm."""
