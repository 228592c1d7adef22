"""Compiles the decoder against the system's libjpeg-turbo."""
import shlex
import subprocess
from typing import List

from setuptools import Extension, setup


def libjpeg(what: str) -> List[str]:
    """Ask pkg-config for the flags of libjpeg: --cflags or --libs."""
    return shlex.split(subprocess.check_output(['pkg-config', what, 'libjpeg'], universal_newlines=True))


setup(
    name='jpeg-region',
    version='1.0',
    description='Decodes a rectangle of a JPEG',
    packages=['jpeg_region'],
    ext_modules=[Extension(
        'jpeg_region._decode', ['src/jpeg_region.c'], extra_compile_args=['-O2'] + libjpeg('--cflags'),
        extra_link_args=libjpeg('--libs'))],
)
