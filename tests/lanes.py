"""Which tests one lane is enough for."""
import sys

import pytest

# Of what takes long and has nothing of a lane in it: tools and scripts that start the jobs which both lanes test, and
# jobs that are about files, messages and processes
once = pytest.mark.skipif(sys.version_info < (3, 9), reason='the same in both lanes; runs in tf2')
