"""Task `lpbf`: numbers of each scan line, such as laser speed and power, from videos of its melt pool."""
