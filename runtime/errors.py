"""The errors that a user can cause and mend. Anything else is a bug and keeps its traceback.

Every message is one line that names the cause and the remedy; the command-line tools print it and exit with code 2.
"""


class MobiEditError(Exception):
    """Base of every error with a remedy for the user."""


class RequestError(MobiEditError):
    """What was asked for is not well formed: prompt, subject, target, an option."""


class BundleError(MobiEditError):
    """The bundle is missing, damaged, unsafe, or of a schema that this version cannot read."""


class JournalError(MobiEditError):
    """The edit journal is damaged, belongs to another model, or has no such edit."""


class StorageError(MobiEditError):
    """The disk refused: full, read-only, no permission."""


class BusyError(MobiEditError):
    """Another process is editing the bundle."""


class NumericsError(MobiEditError):
    """A graph returned NaN or infinity."""


class ExportError(MobiEditError):
    """The source model cannot be exported, or the written graphs are off."""


class ExecutionError(MobiEditError):
    """The execution provider is not installed, has no device here, or does not take a graph."""


def first_line(error: Exception) -> str:
    """Return what a library's error says first, or else its type: a message of ours quotes no more than that."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
