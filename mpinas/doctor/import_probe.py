"""`python -m mpinas.doctor.import_probe NAME …`: imports each module and prints how that went, a JSON line each.

A process of its own: a library that was built for another machine may kill it.
"""

from __future__ import annotations

import importlib
import json
import sys

if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps([name, None]), flush=True)
        try:
            importlib.import_module(name)
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            print(json.dumps([name, lines[0]]), flush=True)
        else:
            print(json.dumps([name, ""]), flush=True)
