"""What people see of a run: lines or a live display while it goes on, tables afterwards. Reads ledgers only."""
