"""What the engine says no to: the text of `Refused` is the sentence that the SDK shows its user."""


class Refused(Exception):
    """A request that cannot be carried out as it stands; the sender can mend it."""
