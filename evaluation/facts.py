"""What an evaluation's outcomes depend on, as far as it is known without TensorFlow."""
import argparse
from typing import Any, Dict, List

from checkpoint import checkpoint_files
from evaluation.outcomes import Strength
from nets import find_network
from runtime.fingerprint import code_sha256, digest, sha256_of_files
from third_party.imagenet import Dataset


def strengths_of(options: argparse.Namespace) -> List[Strength]:
    """Return the attacks that the flags ask for, in the order in which they are reported."""
    return [Strength(k, epsilon, options.attack_step_size)
            for epsilon in options.attack_epsilon for k in options.attack_iter]


def early_facts(options: argparse.Namespace, dataset: Dataset) -> Dict[str, Any]:
    """Return all that the outcomes depend on, but for what evaluation/records.py adds, rounding, and what the image
    files hold."""
    averaged = dict(weights=options.weights) if options.weights != 'raw' else {}  # of --load
    return dict(
        arch=options.arch, depth=options.depth, classes=len(dataset.class_names), image_size=options.image_size,
        checkpoint_sha256=sha256_of_files(checkpoint_files(options.load)),
        paths_and_labels_sha256=digest(dataset.listing(options.data)).hex(), num_images=len(dataset),
        seed=options.seed, attack_dtype=options.attack_dtype, xla=options.xla,
        strengths=[list(s) for s in strengths_of(options)], saves_images=bool(options.save_adversarial),
        preprocess=options.preprocess, dtype=options.dtype, code_sha256=code_sha256(),
        network_sha256=sha256_of_files(find_network(options.arch, options.depth).files()), **averaged)
