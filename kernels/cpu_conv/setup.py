"""Compiles the ops against the TensorFlow of this environment (install with --no-build-isolation)."""
import glob

import tensorflow
from setuptools import Extension, setup

setup(
    name='cpu-conv',
    version='1.0',
    description='For TensorFlow on CPUs: convolutions, with constant weights and trained, and a median filter',
    packages=['cpu_conv'],
    # TF 2's flags name the C++ standard of its headers; those of TF 1.15 don't, and theirs is C++11. Flags that come
    # last win.
    ext_modules=[Extension(
        'cpu_conv._ops', sorted(glob.glob('src/*.cc')), language='c++',
        depends=glob.glob('src/*.h') + glob.glob('src/*.inc'),
        extra_compile_args=['-O3', '-ffp-contract=fast', '-std=c++11', '-w'] + tensorflow.sysconfig.get_compile_flags(),
        extra_link_args=tensorflow.sysconfig.get_link_flags())],
)
