"""The exception that is meant for the user: one whole sentence, shown without a traceback."""


class UserError(Exception):
    """A mistake or obstacle the user can mend. The text says what, where, and what to do next."""
