"""The entry point of the command `worldloom`, which finds its own packages before others of the same names.

`PYTHONPATH` comes first on the module path, and Ray points it at the working folder of a job. A user's folder
`training` or `pipelines` there would be imported in place of ours.
"""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, str(Path(__file__).parent))
    from pipelines.cli import main as run

    run()
