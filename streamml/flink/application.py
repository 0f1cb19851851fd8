"""The program of an application cluster (Flink's application mode, such as a `FlinkDeployment` on Kubernetes).

`python -m streamml.flink.application JOB --source ... --sink ...`, with the options of `streamml submit`. Flink's
`PythonDriver` runs it beside the JobManager: `-pym streamml.flink.application JOB ...`. The savepoint to go on from is
the cluster's to say.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Submit the job to the cluster that this process belongs to."""
    from streamml.cli.main import main as command
    from streamml.flink.submit import APPLICATION

    command(["submit", *sys.argv[1:], "--jobmanager", APPLICATION, "--detach"])


if __name__ == "__main__":
    main()
