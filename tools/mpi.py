"""How to start ranks on this machine."""
import os
import re
import sys
from typing import Dict, List, Optional, Sequence


def mpirun(ranks: int, arguments: Sequence[str]) -> List[str]:
    """Return the command that runs `python ARGUMENTS` as `ranks` ranks of this machine, with this Python.

    Ranks may outnumber cores, which Open MPI refuses unless told otherwise, and each may use all cores, where Open MPI
    would pin it to one.
    """
    as_root = ['--allow-run-as-root'] if os.geteuid() == 0 else []
    return ['mpirun'] + as_root + ['--oversubscribe', '--bind-to', 'none', '-np', str(ranks),
                                   sys.executable] + list(arguments)


def read_figures(stdout: str) -> Dict[str, Optional[float]]:
    """Read the figures that an evaluation prints at its end: {'Top1 Error': fraction, ...}, None for n/a."""
    return {title: None if value == 'n/a' else float(value) for title, value in
            re.findall(r'^(Top1 Error|Attack Success Rate|Top5 Error): (\S+)$', stdout, re.MULTILINE)}
