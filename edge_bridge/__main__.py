"""`python -m edge_bridge` and the console script `edge-bridge`."""

from __future__ import annotations

from edge_bridge.cli import main

if __name__ == "__main__":
    main()
