"""What an evaluation's outcomes depend on, as far as it is known without TensorFlow."""
import argparse
from typing import Any, Dict, Mapping

from checkpoint import checkpoint_files
from evaluation.plan import attacks_of, strengths_of
from nets import network_of
from runtime.fingerprint import code_sha256, digest, sha256_of_files
from third_party.imagenet import Dataset


def early_facts(options: argparse.Namespace, dataset: Dataset, targets: Mapping[int, int]) -> Dict[str, Any]:
    """Return all that the outcomes depend on, but for what evaluation/records.py adds, rounding, and what the image
    files hold. targets: {index of an image: label} of a file of --targets."""
    attack = attacks_of(options)[0]
    averaged = dict(weights=options.weights) if options.weights != 'raw' else {}  # of --load
    return dict(
        arch=options.arch, depth=options.depth, denoise=options.denoise, denoise_where=options.denoise_where,
        denoise_block=options.denoise_block, classes=len(dataset.class_names), image_size=options.image_size,
        checkpoint_sha256=sha256_of_files(checkpoint_files(options.load)),
        paths_and_labels_sha256=digest(dataset.listing(options.data)).hex(), num_images=len(dataset),
        seed=options.seed, attack_dtype=options.attack_dtype, xla=options.xla,
        strengths=[list(s) for s in strengths_of(options)], saves_images=bool(options.save_adversarial),
        attackers=options.attacker, loss=attack.loss, goal=attack.goal, targets=attack.targets,
        num_targets=attack.num_targets, restarts=attack.restarts,
        targets_sha256=digest(sorted(targets.items())).hex() if targets else None,
        subset=dict(num_images=len(dataset), indices_sha256=digest(list(dataset.indices)).hex())
        if dataset.indices is not None else None,
        preprocess=options.preprocess, dtype=options.dtype, code_sha256=code_sha256(),
        network_sha256=sha256_of_files(network_of(options).files()), **averaged)
