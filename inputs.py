"""What the flags name, looked at before TensorFlow is loaded, which takes seconds: a mistake is told at once.

Each rank looks once. What it finds, which on a file server may take minutes, is given to the job; what it warns of is
said here.
"""
import argparse
from typing import Dict, List, NamedTuple, Optional

from checkpoint import check_files
from nets import find_network
from runtime.command_line import rank
from runtime.files import check_folder, check_writable
from runtime.launcher import check_alone, check_launch, find_launch
from third_party.imagenet import Dataset, check_folders, class_names, find_images, load_dataset

# What takes its time to be loaded, OpenCV and ZeroMQ, is imported where it is used.


class Folder(NamedTuple):
    """The images of --eval-directory, and what a manifest says of them: {real path: evaluation.saved_images.Listed}."""
    paths: List[str]
    listed: Dict


class TrainingData(NamedTuple):
    """The classes of a training, and the images on which it is evaluated. With --fake there are none of both."""
    classes: List[str]
    validation: Optional[Dataset]


def inputs_of_evaluation(options: argparse.Namespace) -> Dataset:
    """Return the images of --eval. Raises InputError for what can be told to be wrong of the job."""
    check_launch()
    find_network(options.arch, options.depth)
    dataset = load_dataset(options.data, 'val', options.classes)
    check_files(options.load)
    if options.attacker:
        from evaluation.attacker import check_attacker
        check_attacker(options.attacker)
    if rank() == '0':  # the others' machines need not have these places
        check_places(options, dataset)
    return dataset


def check_places(options: argparse.Namespace, dataset: Dataset) -> None:
    """Raise InputError where an evaluation can't keep what it would, or go on from what is there."""
    for path in filter(None, [options.results, options.per_image]):
        check_writable(path)
    begun = False
    if options.journal:
        from evaluation.facts import early_facts
        from evaluation.journal import check_usable
        begun = check_usable(options.journal, lambda: early_facts(options, dataset))
    if options.save_adversarial:
        check_folder(options.save_adversarial, 'cannot write %s: %s')
        from evaluation.saved_images import check_unused
        check_unused(options.save_adversarial, continued=begun)


def inputs_of_scoring(options: argparse.Namespace) -> Folder:
    """Return the images of --eval-directory. Raises InputError for what can be told to be wrong of the job."""
    check_alone('--eval-directory')
    paths = find_images(options.eval_directory)
    check_writable(options.prediction_file)
    find_network(options.arch, options.depth)
    check_files(options.load)
    from evaluation.saved_images import find_manifest
    return Folder(paths, find_manifest(options.eval_directory, options.labels))


def inputs_of_training(options: argparse.Namespace) -> TrainingData:
    """Return what a training is of. Raises InputError for what can be told to be wrong of the job."""
    check_launch()
    find_network(options.arch, options.depth)
    data = TrainingData([], None) if options.fake else training_data(options)
    if options.load:
        check_files(options.load)
    if rank() == '0':  # as above
        check_log(options)
    return data


def training_data(options: argparse.Namespace) -> TrainingData:
    """Find classes and validation images. Raises InputError where data is missing, or no data server can be meant."""
    if options.training_eval == 'none':
        data = TrainingData(class_names(options.data, options.classes), None)
    else:
        validation = load_dataset(options.data, 'val', options.classes)
        data = TrainingData(validation.class_names, validation)
    if rank() == '0':  # the chief counts the images of all
        check_folders(options.data, 'train')
    from third_party.transport import check_endpoint, default_endpoint
    check_endpoint(options.endpoint or default_endpoint(options.batch, options.image_size))
    return data


def check_log(options: argparse.Namespace) -> None:
    """Raise InputError where a training can't have its log directory, or go on from what isn't there."""
    from training.log_directory import check_log_directory, log_directory_of
    started = find_launch()
    ranks = started.size if started else 1
    if ranks is not None or options.resume:  # the number is in the directory's name, if --resume doesn't tell that
        directory = log_directory_of(options, ranks or 1)
        check_log_directory(directory, resume=options.resume is not None, overwrite=options.overwrite,
                            keep=options.load)
