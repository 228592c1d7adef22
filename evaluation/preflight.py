"""Looks at what the flags of an evaluation or a scoring name, before TensorFlow is loaded: a mistake is told at once.

Each rank looks once. What it finds, which on a file server may take minutes, is given to the job; what it warns of is
said here.
"""
import argparse
from typing import Dict, List, NamedTuple

from checkpoint import check_files, classes_in
from evaluation.attack_flags import Evaluated, check_attackers, evaluated_images
from runtime.command_line import rank
from runtime.files import check_folder, check_writable
from runtime.launcher import check_alone, check_launch
from third_party.imagenet import find_images, load_dataset

# What takes its time to be loaded, OpenCV and ZeroMQ, is imported where it is used.


class Folder(NamedTuple):
    """The images of --eval-directory, and what a manifest says of them: {real path: evaluation.saved_images.Listed}."""
    paths: List[str]
    listed: Dict


def inputs_of_evaluation(options: argparse.Namespace) -> Evaluated:
    """Return the images of --eval. Raises InputError for what can be told to be wrong of the job."""
    check_launch()
    evaluated = evaluated_images(options, load_dataset(options.data, 'val', options.classes))
    check_files(options.load)
    check_attackers(options.attacker)
    if rank() == '0':  # the others' machines need not have these places
        check_places(options, evaluated)
    return evaluated


def check_places(options: argparse.Namespace, evaluated: Evaluated) -> None:
    """Raise InputError where an evaluation can't keep what it would, or go on from what is there."""
    for path in filter(None, [options.results, options.per_image]):
        check_writable(path)
    begun = False
    if options.journal:
        from evaluation.facts import early_facts
        from evaluation.journal import check_usable
        begun = check_usable(options.journal, lambda: early_facts(options, *evaluated))
    if options.save_adversarial:
        check_folder(options.save_adversarial, 'cannot write %s: %s')
        from evaluation.saved_images import check_unused
        check_unused(options.save_adversarial, continued=begun)


def inputs_of_scoring(options: argparse.Namespace) -> Folder:
    """Return the images of --eval-directory. Raises InputError for what can be told to be wrong of the job."""
    check_alone('--eval-directory')
    paths = find_images(options.eval_directory)
    check_writable(options.prediction_file)
    check_files(options.load)
    from evaluation.saved_images import check_labels, check_listed, find_manifest
    listed = find_manifest(options.eval_directory, options.labels)
    check_listed(listed, paths, options.eval_directory)
    num_classes = classes_in(options.load, options.arch)
    if num_classes:
        check_labels(listed, num_classes)
    return Folder(paths, listed)
