"""Which files are a checkpoint, and whether they are there. Without TensorFlow, so that a wrong name is told at
once."""
import glob
import os
import re
import zipfile
from typing import List

from runtime.errors import InputError


def tf_prefix(path: str) -> str:
    """Return the prefix of a TF checkpoint that is named by one of its files, or by the prefix itself."""
    return re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)


def checkpoint_files(path: str) -> List[str]:
    """List the files that hold a checkpoint's weights, sorted."""
    if path.endswith('.npz'):
        return [path]
    prefix = tf_prefix(path)
    return sorted(glob.glob(glob.escape(prefix) + '.index') + glob.glob(glob.escape(prefix) + '.data-*'))


def check_files(path: str) -> None:
    """Raise InputError where there is no checkpoint at `path`, or an .npz file that is cut off or no archive."""
    if path.endswith('.npz'):
        if not os.path.isfile(path):
            raise InputError('no checkpoint %s' % path)
        try:
            zipfile.ZipFile(path).close()  # reads where its members are, which stands at its end
        except Exception as e:  # a damaged file can end in many: all that happens here is reading it
            raise damaged_npz(path, e)
    elif not os.path.isfile(tf_prefix(path) + '.index'):
        raise InputError('no checkpoint %s: give an .npz file, or model-<step> as training writes it, '
                         'which has a %s.index' % (path, os.path.basename(tf_prefix(path))))


def damaged_npz(path: str, error: Exception) -> InputError:
    return InputError('checkpoint %s can\'t be read, it is damaged or not an .npz of plain arrays (%s); '
                      'get it again' % (path, error))
