"""What ends a job: the user's input is wrong, or a run that began well can't go on. command_line.py says it."""


class InputError(ValueError):
    """Wrong flags, files or data. Its text is one line that says what is wrong and what to do about it."""


class LaunchError(InputError):
    """The job was started in a way, or with flags, that all of its processes find wrong, alike."""


class RunError(RuntimeError):
    """A run that began well cannot go on: its loss is not a number, its disk is full. Its text is one line."""


class NoMemory(RunError):
    """There is no memory for one thing, which may be too large or come at a bad moment. Its text is one line."""
