"""Tensors from a ZeroMQ socket into a TensorFlow graph, and messages of arrays for its other end.

It has the interface that tensorpack's `ZMQInput` and `send_dataflow_zmq(format='zmq_ops')` import, and the same
bytes on the wire (see wire.py) as the op that they were written for.
"""
from zmq_ops.pull import ZMQPullSocket
from zmq_ops.wire import dump_arrays, load_arrays

__all__ = ['ZMQPullSocket', 'dump_arrays', 'load_arrays']
