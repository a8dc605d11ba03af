"""torchrun for dist_train.sh and dist_test.sh: it passes SIGUSR1 on too, and ends with the exit code of pre-emption.

    python tools/launch_processes.py [options of torchrun] TOOL [arguments of the tool]

torchrun ends with exit code 1 whatever its processes ended with. When they were told to leave and have saved everything
(mmcnx2/engine/preemption.py), this ends with their 75, and after Ctrl-C with 130. Touch it for how processes are
started and what is made of their end; not for its options (dist_run.sh). Guarded by tests/test_tools.py and
tests/test_training_runs.py.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main() -> None:
    with tempfile.TemporaryDirectory(prefix='mmcnx2-') as folder:
        exit_file = Path(folder) / 'exit_code'
        os.environ['MMCNX2_EXIT_FILE'] = str(exit_file)  # written by the first process of this machine
        try:
            torchrun()
        except (ChildFailedError, SignalException) as error:
            if exit_file.exists():
                sys.exit(int(exit_file.read_text()))
            if getattr(error, 'sigval', None) == signal.SIGINT:
                sys.exit(130)  # Ctrl-C, of which rank 0 has spoken
            raise


if __name__ == '__main__':
    main()
