"""Ends the set-up, under `mpirun -np 2`: the packages import, and two ranks add numbers through Horovod."""
import os
import warnings

warnings.simplefilter('ignore')  # TF 1.15 on today's numpy warns by the page
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['TF_USE_LEGACY_KERAS'] = '1'

import cv2  # noqa: E402,F401
import horovod.tensorflow as hvd  # noqa: E402
import matplotlib  # noqa: E402,F401
import sklearn.datasets  # noqa: E402,F401
import zmq  # noqa: E402,F401
from tensorpack.compat import tfv1 as tf  # noqa: E402

tf.disable_v2_behavior()
hvd.init()
total = hvd.allreduce(tf.constant([hvd.rank() + 1.]), op=hvd.Sum)
# Horovod waits inside an op: with one inter-op thread nothing would be left to run the rest of the graph.
with tf.Session(config=tf.ConfigProto(inter_op_parallelism_threads=2)) as session:
    result = float(session.run(total)[0])
expected = sum(range(1, hvd.size() + 1))
if hvd.size() != 2 or result != expected:
    raise SystemExit('rank %d of %d got %s from the sum of ranks, expected %s'
                     % (hvd.rank(), hvd.size(), result, expected))
