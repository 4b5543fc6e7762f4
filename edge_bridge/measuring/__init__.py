"""How a model is measured, in a child process: protocol of measurement, runtimes, sensors."""
