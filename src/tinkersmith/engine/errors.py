"""What the engine says no to: the text of `Refused` is the sentence that the SDK shows its user."""


class Refused(Exception):
    """A request that cannot be carried out as it stands; the sender can mend it."""


class NotFound(Refused):
    """What is asked for was never here."""


class Gone(Refused):
    """What is asked for was here and is no more."""
