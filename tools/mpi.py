"""How to start ranks on this machine."""
import os
import re
import sys
from typing import Dict, List, Sequence


def mpirun(ranks: int, arguments: Sequence[str]) -> List[str]:
    """The command that runs `python ARGUMENTS` as `ranks` ranks of this machine, with this Python.

    Ranks may outnumber cores and use any of them: Open MPI would refuse the one and pin each rank to a core.
    """
    as_root = ['--allow-run-as-root'] if os.geteuid() == 0 else []
    return ['mpirun'] + as_root + ['--oversubscribe', '--bind-to', 'none', '-np', str(ranks),
                                   sys.executable] + list(arguments)


def read_figures(stdout: str) -> Dict[str, float]:
    """The last lines of an evaluation, {'Top1 Error': fraction, ...}."""
    return {title: float(value) for title, value in
            re.findall(r'^(Top1 Error|Attack Success Rate|Top5 Error): (\S+)$', stdout, re.MULTILINE)}
