"""The native half: ioctls, guest memory, exits, queues. Imports nothing of the Python half."""
