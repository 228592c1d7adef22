"""Compiles the ops against the TensorFlow of this environment (install with --no-build-isolation)."""
import tensorflow
from setuptools import Extension, setup

setup(
    name='grouped-conv',
    version='1.0',
    description='Grouped convolutions and their gradients for TensorFlow on CPUs',
    packages=['grouped_conv'],
    # TF 2's flags name the C++ standard of its headers; those of TF 1.15 don't, and theirs is C++11. Flags that come
    # last win.
    ext_modules=[Extension(
        'grouped_conv._ops', ['src/grouped_conv.cc'], depends=['src/loops.h', 'src/kernels.inc'], language='c++',
        extra_compile_args=['-O3', '-ffp-contract=fast', '-std=c++11', '-w'] + tensorflow.sysconfig.get_compile_flags(),
        extra_link_args=tensorflow.sysconfig.get_link_flags())],
)
