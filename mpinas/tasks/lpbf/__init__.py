"""Task `lpbf`: learn scan speed and laser power from videos of a melt pool (RAISE-LPBF-Laser)."""
