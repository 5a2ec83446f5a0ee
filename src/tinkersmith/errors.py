"""The exception whose text is meant for the user: one whole sentence, shown without a traceback."""


class UserError(Exception):
    """Something that the user can fix. The text says what is wrong, where, and what to do next."""
