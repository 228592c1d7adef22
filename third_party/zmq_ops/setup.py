"""Compiles the op against the TensorFlow of this environment and the system's libzmq: install it with
--no-build-isolation.
"""
import shlex
import subprocess
from typing import List

import tensorflow
from setuptools import Extension, setup


def libzmq(what: str) -> List[str]:
    """Ask pkg-config for the flags of libzmq: --cflags or --libs."""
    return shlex.split(subprocess.check_output(['pkg-config', what, 'libzmq'], universal_newlines=True))


setup(
    name='zmq-ops',
    version='1.0',
    description='Tensors from a ZeroMQ socket into a TensorFlow graph',
    packages=['zmq_ops'],
    # TF 2's flags name the C++ standard of its headers; those of TF 1.15 don't, and theirs is C++11. Flags that come
    # last win.
    ext_modules=[Extension(
        'zmq_ops._ops', ['src/zmq_ops.cc'], depends=['src/wire.h'], language='c++',
        extra_compile_args=['-O2', '-std=c++11', '-w'] + libzmq('--cflags') + tensorflow.sysconfig.get_compile_flags(),
        extra_link_args=libzmq('--libs') + tensorflow.sysconfig.get_link_flags())],
)
