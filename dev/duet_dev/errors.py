"""The one error that a user of the local cluster sees as a sentence instead of a traceback."""


class DevError(Exception):
    """Something that the person at the terminal can understand and mend; the text says how."""
