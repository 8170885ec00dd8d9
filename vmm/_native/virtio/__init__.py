"""Queues of virtio devices, and the threads that serve them."""
