"""Progress bars: tqdm's, with a lock that is this process's alone."""
import threading

from tqdm import tqdm

__all__ = ['tqdm']

# By itself tqdm takes a lock of several processes, of which Python 3.7 writes two lines when a job ends with an error.
tqdm.set_lock(threading.RLock())
