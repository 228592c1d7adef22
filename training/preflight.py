"""Looks at what the flags of a training name, before TensorFlow is loaded: a mistake is told at once.

Each rank looks once. What it finds, which on a file server may take minutes, is given to the job; what it warns of is
said here.
"""
import argparse
from typing import List, NamedTuple, Optional

from checkpoint import check_files
from runtime.command_line import rank
from runtime.launcher import check_launch, find_launch
from third_party.imagenet import Dataset, check_folders, class_names, load_dataset

# What takes its time to be loaded, OpenCV and ZeroMQ, is imported where it is used.


class TrainingData(NamedTuple):
    """The classes of a training, and the images on which it is evaluated. With --fake there are none of both."""
    classes: List[str]
    validation: Optional[Dataset]


def inputs_of_training(options: argparse.Namespace) -> TrainingData:
    """Return what a training is of. Raises InputError for what can be told to be wrong of the job."""
    check_launch()
    data = TrainingData([], None) if options.fake else training_data(options)
    if options.load:
        check_files(options.load)
    if rank() == '0':  # the others' machines need not have this place
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
