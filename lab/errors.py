"""What goes wrong in the lab, said in one line with its cure."""

from guest.host import GuestError


class LabError(GuestError):
    """A host could not be made, started or reached; the message says why and what to do."""
