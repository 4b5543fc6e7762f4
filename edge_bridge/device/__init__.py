"""The agent on the device: takes tasks, has them measured, keeps the results."""
