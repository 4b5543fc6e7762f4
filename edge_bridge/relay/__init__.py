"""The relay on the login node: `core` decides, `service` is the process."""
