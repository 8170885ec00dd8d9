"""Boot payloads: recognise a kernel or firmware, load it, describe the machine to it."""
