"""What travels between job, relay and device, and what may be trusted: values, messages, keys, sockets."""
