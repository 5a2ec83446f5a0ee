"""Refusals: the text of a `Refused` is the sentence that the SDK shows its user."""


class Refused(Exception):
    """A request that the engine cannot carry out; the sender can fix it."""


class NotFound(Refused):
    """The requested thing never existed on this engine."""


class Gone(Refused):
    """The requested thing existed on this engine, and exists no longer."""


class StorageFailure(Exception):
    """The engine's folder cannot be used now. The text is a sentence that names the folder."""
