"""What an access may do: read, write, both or nothing."""

from __future__ import annotations


class Permissions(int):
    """A set of access rights. `|` joins, `&` intersects, and `allow` asks.

    >>> Permissions.ReadWrite & Permissions.Write
    Permissions.Write
    >>> Permissions.Read.allow(Permissions.No)
    True
    """

    __slots__ = ()

    No: Permissions
    Read: Permissions
    Write: Permissions
    ReadWrite: Permissions

    def allow(self, access: int) -> bool:
        """Say whether these rights include all of `access`; asking for none is always allowed."""
        return self & access == access

    def has_write(self) -> bool:
        """Say whether these rights include writing."""
        return bool(self & 2)

    def __or__(self, other: int) -> Permissions:
        return Permissions(int(self) | other)

    def __and__(self, other: int) -> Permissions:
        return Permissions(int(self) & other)

    def __repr__(self) -> str:
        return f"Permissions.{('No', 'Read', 'Write', 'ReadWrite')[int(self) & 3]}"


# an enum would cost its import on the way to the first instruction of a guest
Permissions.No, Permissions.Read, Permissions.Write, Permissions.ReadWrite = map(Permissions, range(4))
