"""Classification by PyTorch, onnxruntime and OpenVINO: a worker of scoring.py. It knows nothing of this project's code.

Each is given a batch of floats in [-1, 1], (N, 3, S, S), and one batch at a time with all threads.
"""
import os
import tempfile
import time
from typing import Callable, Dict

import numpy as np
import torch
from torch_peer import ResNet
from turns import Configuration, serve_turns, worker_configuration

Classify = Callable[[np.ndarray], np.ndarray]  # (N, 3, S, S) float32 to logits


def by_pytorch(net: ResNet, images: torch.Tensor, c: Configuration) -> Classify:
    """Return the compiled network, its weights folded once, channels last."""
    dtype = getattr(torch, c.dtype)
    folded, compiled = net.to(memory_format=torch.channels_last).folded(dtype), torch.compile(net)

    def classify(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            last = torch.from_numpy(x).to(dtype).contiguous(memory_format=torch.channels_last)
            return compiled(last, folded).float().numpy()
    return classify


def exported(net: ResNet, images: torch.Tensor, path: str) -> str:
    """Write the network as ONNX, of just these images' batch size."""
    torch.onnx.export(net, (images,), path, dynamo=True, input_names=['images'], output_names=['logits'],
                      external_data=False, verbose=False)
    return path


def by_onnxruntime(net: ResNet, images: torch.Tensor, c: Configuration) -> Classify:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = c.threads
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(exported(net, images, os.path.join(folder, 'net.onnx')), options,
                                               providers=['CPUExecutionProvider'])
    return lambda x: session.run(None, {'images': x})[0]


def by_openvino(net: ResNet, images: torch.Tensor, c: Configuration) -> Classify:
    import openvino
    precision = {'float32': 'f32', 'bfloat16': 'bf16'}[c.dtype]  # by itself it would choose bfloat16 where it is fast
    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        model = core.compile_model(core.read_model(exported(net, images, os.path.join(folder, 'net.onnx'))), 'CPU', {
            'INFERENCE_PRECISION_HINT': precision, 'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_NUM_THREADS': c.threads})
    return lambda x: model(x)[0]


SYSTEMS: Dict[str, Callable[[ResNet, torch.Tensor, Configuration], Classify]] = {
    'tuned PyTorch': by_pytorch, 'onnxruntime': by_onnxruntime, 'OpenVINO': by_openvino}


def prepare() -> Callable[[], float]:
    """Return what measures the configured system, in images a second. It must compute what PyTorch does."""
    c = worker_configuration()
    if c is None:
        raise SystemExit('this is a worker of scoring.py: give it --peer torch')
    torch.set_num_threads(c.threads)
    torch.manual_seed(0)
    arch, depth = c.network.rsplit('-', 1)
    net = ResNet(arch, int(depth)).eval()
    images = torch.rand(c.batch, 3, c.image_size, c.image_size) * 2 - 1
    with torch.no_grad():
        expected = net(images).numpy()
    classify, x = SYSTEMS[c.system](net, images, c), images.numpy()
    error = np.abs(classify(x) - expected).max() / np.abs(expected).max()
    if not error < (1e-3 if c.dtype == 'float32' else 0.1):
        raise SystemExit('%s computes other logits, by %g of the largest' % (c.system, error))

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(c.steps):
            classify(x)
        return c.batch * c.steps / (time.perf_counter() - begin)
    return measure


if __name__ == '__main__':
    serve_turns(prepare)
