r"""fw_cfg: how firmware and kernels ask a virtual machine monitor for its configuration, as items and named files.

>>> fw_cfg = FwCfg()
>>> fw_cfg.add_file("opt/org.example/greeting", b"hello")
>>> fw_cfg.write(SELECTOR, memoryview(FILE_FIRST.to_bytes(2, "little")))
>>> answer = memoryview(bytearray(5))
>>> fw_cfg.read(DATA, answer)
>>> bytes(answer)
b'hello'

Its lock protects which item is selected, the bytes that it had then, and how far they are read. Guest memory, and the
callables that make content or take what was written, are other's: they are used with no lock, and what is done to the
selection afterwards is only done to the same one (`_selections` counts them).

Source: QEMU, docs/specs/fw_cfg.
"""

from __future__ import annotations

from struct import pack, unpack

from pyvmm_device.errors import DeviceStateError
from pyvmm_device.locks import DeferringLock
from pyvmm_device.state import Stateful, array, blob, number, optional, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Memory(Protocol):
        """Guest memory, as `pyvmm_memory` has it. Where the guest has none, both raise."""

        def read_slice(self, buffer: bytearray, addr: int, /) -> object:
            """Fill a buffer from guest memory."""
            ...

        def write_slice(self, buffer: bytes, addr: int, /) -> object:
            """Copy a buffer to guest memory."""
            ...


PORT, SIZE = 0x510, 12
SELECTOR, DATA, DMA = 0, 1, 4
MMIO_DATA, MMIO_SELECTOR, MMIO_DMA, MMIO_SIZE = 0, 8, 16, 24
SIGNATURE, ID, FILE_DIRECTORY, FILE_FIRST = 0x0000, 0x0001, 0x0019, 0x0020
ID_TRADITIONAL, ID_DMA = 1, 2
WRITE_MODE = 0x4000
"""Of a selector: written by guests that were made for very old versions, and of no effect."""
ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
"""Of the control word of a DMA access."""
DMA_SIGNATURE = b"QEMU CFG"
NAME_SIZE = 56
MOST_FILES = 0x1000
MOST_BYTES = 64 << 20
"""Of one item, and of the zeros that one DMA access asks for behind an item's end."""
CHUNK = 1 << 16


class Item:
    """What one selector leads to."""

    __slots__ = ("content", "first", "on_write")

    def __init__(self, content: bytes | Callable[[], bytes], on_write: Callable[[bytes], object] | None) -> None:
        self.content = content
        self.first = content
        self.on_write = on_write

    def get(self) -> bytes:
        """Return the bytes as they are now."""
        content = self.content() if callable(self.content) else self.content
        if len(content) > MOST_BYTES:
            raise ValueError(f"an fw_cfg item of {len(content)} bytes; {MOST_BYTES} are possible")
        return content


class FwCfg(Stateful):
    """The selector and data ports, and the DMA interface where there is memory. `mmio` is the same for other machines.

    Args:
        memory: where DMA accesses go; without it the guest is told that there are none.
    """

    STATE = {
        "selector": uint(16),
        "offset": number(0, MOST_BYTES),
        "address": uint(64),
        "content": optional(blob(0, MOST_BYTES)),
        "written": array(blob(0, MOST_BYTES), MOST_FILES),
    }

    def __init__(self, memory: Memory | None = None) -> None:
        self.lock: DeferringLock = DeferringLock()
        self._selections = 0
        self._memory = memory
        self._files: dict[str, Item] = {}
        self._items: dict[int, Item] = {}
        self.add_item(SIGNATURE, b"QEMU")
        self.add_item(ID, pack("<I", ID_TRADITIONAL | (ID_DMA if memory is not None else 0)))
        self.add_item(FILE_DIRECTORY, self._directory)
        self.mmio = FwCfgMmio(self)
        self.reset()

    def add_item(self, selector: int, content: bytes | Callable[[], bytes]) -> None:
        """Answer at a number; a callable is asked each time the guest selects it.

        Raises:
            ValueError: the number is taken, or belongs to files, or the content is too long.
        """
        local = selector & 0x7FFF
        if not 0 <= selector < 0x10000 or selector & WRITE_MODE or selector in self._items:
            raise ValueError(f"selector {selector:#x} is taken or not possible")
        if local == selector and local >= FILE_FIRST:
            raise ValueError(f"selector {selector:#x} belongs to files: use add_file")
        self._items[selector] = _item(content, None)

    def add_file(
        self, name: str, content: bytes | Callable[[], bytes], on_write: Callable[[bytes], object] | None = None
    ) -> None:
        """Add a file, before the guest reads the directory: files are numbered in the order of their names.

        Args:
            name: such as "etc/e820"; your own begin with "opt/" and a reversed domain.
            content: bytes, or a callable that is asked each time the guest selects the file.
            on_write: makes the file writable by DMA; called with the whole new content after each write.

        Raises:
            ValueError: the name is taken or longer than 55 bytes of ASCII, or the content too long; there are too
                many files; a callable's content cannot be written.
        """
        if not name or not name.isascii() or len(name) >= NAME_SIZE or "\0" in name or name in self._files:
            raise ValueError(f"{name!r} is taken, or no name of 1 to {NAME_SIZE - 1} ASCII characters")
        if callable(content) and on_write is not None:
            raise ValueError(f"{name}: what a callable returns cannot be written")
        if len(self._files) >= MOST_FILES:
            raise ValueError(f"{MOST_FILES} files are possible")
        item = _item(content, on_write)
        with self.lock:
            self._files = dict(sorted({**self._files, name: item}.items()))

    @property
    def selectors(self) -> dict[str, int]:
        """The number of each file."""
        return {name: number for number, name in enumerate(self._files, FILE_FIRST)}

    def reset(self) -> None:
        """Select the signature, and forget what the guest wrote."""
        with self.lock:
            for item in self._files.values():
                item.content = item.first
            self._address = 0
        self.select(SIGNATURE)

    def _directory(self) -> bytes:
        entries = [
            pack(">IHH56s", len(item.get()), number, 0, name.encode())
            for number, (name, item) in enumerate(self._files.items(), FILE_FIRST)
        ]
        return pack(">I", len(entries)) + b"".join(entries)

    def _find(self, selector: int) -> Item | None:
        selector &= ~WRITE_MODE
        if FILE_FIRST <= selector < FILE_FIRST + len(self._files):
            return list(self._files.values())[selector - FILE_FIRST]
        return self._items.get(selector)

    # the guest's side

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read the next bytes of the item from the data port, or what says that there is DMA."""
        if offset == DATA:
            self.read_data(buffer)
        elif DMA <= offset < SIZE:
            self.read_dma(offset - DMA, buffer)
        else:
            buffer[:] = bytes(len(buffer))

    def write(self, offset: int, data: memoryview) -> None:
        """Select an item, or begin a DMA access; the data port is not written."""
        if offset == SELECTOR and len(data) == 2:
            self.select(int.from_bytes(data, "little"))
        elif DMA <= offset < SIZE:
            self.write_dma(offset - DMA, data)

    def select(self, selector: int) -> None:
        """Select an item and its first byte."""
        item = self._find(selector)
        content = self._content_of(item) if item is not None else b""
        with self.lock:
            self._selector, self._offset, self._item, self._bytes = selector, 0, item, content
            self._selections += 1

    def _content_of(self, item: Item) -> bytes:
        try:
            return item.get()
        except Exception as error:  # noqa: BLE001 - a callable of the machine's, which a guest makes us call
            self.lock.failed.count("content", "%r: an item's content could not be made, and is empty: %r", self, error)
            return b""

    def read_data(self, buffer: memoryview) -> None:
        """Read the next bytes; behind an item's end there are zeros."""
        with self.lock:
            taken = self._bytes[self._offset : self._offset + len(buffer)]
            self._offset += len(taken)
        buffer[:] = taken.ljust(len(buffer), b"\0")

    def read_dma(self, offset: int, buffer: memoryview) -> None:
        """Read the DMA address register: "QEMU CFG" where there is DMA."""
        signature = DMA_SIGNATURE if self._memory is not None else b""
        buffer[:] = signature[offset : offset + len(buffer)].ljust(len(buffer), b"\0")

    def write_dma(self, offset: int, data: memoryview) -> None:
        """Write the DMA address register, whole or in halves; the low half begins the access."""
        value = int.from_bytes(data, "big")
        memory, address = self._memory, None
        with self.lock:
            if offset == 0 and len(data) == 4:
                self._address = value << 32
            elif (offset, len(data)) in ((4, 4), (0, 8)):
                address = value if offset == 0 else self._address | value
                # "the DMA address register ... is cleared" for the next access, which may write the low half only
                self._address = 0
        if memory is not None and address is not None:
            self._access(memory, address)

    def _access(self, memory: Memory, at: int) -> None:
        """Carry out the access that a structure in guest memory describes."""
        request = bytearray(16)
        if not _done(lambda: memory.read_slice(request, at)):
            _done(lambda: memory.write_slice(pack(">I", ERROR), at))
            return
        control, length, address = unpack(">IIQ", request)
        if control & SELECT:
            self.select(control >> 16)
        if control & READ:
            done = self._dma_read(memory, address, length)
        elif control & WRITE:
            done = self._dma_write(memory, address, length)
        else:
            done = True
            if control & SKIP:
                with self.lock:
                    self._offset += min(length, len(self._bytes) - self._offset)
        _done(lambda: memory.write_slice(pack(">I", 0 if done else ERROR), at))

    def _dma_read(self, memory: Memory, address: int, length: int) -> bool:
        with self.lock:
            selection, offset = self._selections, self._offset
            taken = self._bytes[offset : offset + length]
        zeros = length - len(taken)
        if zeros > MOST_BYTES or (taken and not _done(lambda: memory.write_slice(taken, address))):
            return False
        with self.lock:
            if (selection, offset) == (self._selections, self._offset):
                self._offset += len(taken)
        for begin in range(address + len(taken), address + length, CHUNK):
            if not self._write_zeros(memory, begin, min(CHUNK, address + length - begin)):
                return False
        return True

    def _write_zeros(self, memory: Memory, address: int, length: int) -> bool:
        return _done(lambda: memory.write_slice(bytes(length), address))

    def _dma_write(self, memory: Memory, address: int, length: int) -> bool:
        with self.lock:
            selection, item = self._selections, self._item
            room = len(self._bytes) - self._offset
        if item is None or item.on_write is None or length > room:
            return False
        data = bytearray(length)
        if not _done(lambda: memory.read_slice(data, address)):
            return False
        with self.lock:
            end = self._offset + length
            if selection != self._selections or end > len(self._bytes):
                return False  # another vCPU selected or moved on meanwhile
            self._bytes = item.content = self._bytes[: self._offset] + bytes(data) + self._bytes[end:]
            self._offset = end
            self.lock.after(item.on_write, self._bytes)
        return True

    # state

    def _writable(self) -> list[Item]:
        return [item for item in self._files.values() if item.on_write is not None]

    def _before_save(self) -> None:
        self._content = self._bytes if self._item is not None and callable(self._item.content) else None
        self._written = [item.get() for item in self._writable()]

    def _check_fields(self, fields: dict[str, Any]) -> None:
        lengths = [len(item.get()) for item in self._writable()]
        if [len(content) for content in fields["written"]] != lengths:
            raise DeviceStateError("FwCfg", f"written: the files that can be written have {lengths} bytes")
        item, content = self._find(fields["selector"]), fields["content"]
        if (content is not None) != (item is not None and callable(item.content)):
            raise DeviceStateError("FwCfg", "content: it is there for an item that a callable makes, and for no other")
        if content is None:
            content = item.get() if item is not None else b""
        if fields["offset"] > len(content):
            raise DeviceStateError("FwCfg", f"offset: the item has {len(content)} bytes")

    def _after_restore(self) -> None:
        for item, content in zip(self._writable(), self._written, strict=True):
            item.content = bytes(content)
        self._item = self._find(self._selector)
        if self._content is not None:
            self._bytes = bytes(self._content)
        else:
            self._bytes = self._item.get() if self._item is not None else b""

    def __repr__(self) -> str:
        return f"<FwCfg {len(self._files)} files, at byte {self._offset} of item {self._selector:#x}>"


class FwCfgMmio:
    """The registers of an `FwCfg` as machines without ports have them: data, selector, DMA address; big-endian."""

    __slots__ = ("_fw_cfg",)

    def __init__(self, fw_cfg: FwCfg) -> None:
        self._fw_cfg = fw_cfg

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read the next 1 to 8 bytes of the item, or what says that there is DMA."""
        if offset == MMIO_DATA:
            self._fw_cfg.read_data(buffer)
        elif MMIO_DMA <= offset < MMIO_SIZE:
            self._fw_cfg.read_dma(offset - MMIO_DMA, buffer)
        else:
            buffer[:] = bytes(len(buffer))

    def write(self, offset: int, data: memoryview) -> None:
        """Select an item, or begin a DMA access."""
        if offset == MMIO_SELECTOR and len(data) == 2:
            self._fw_cfg.select(int.from_bytes(data, "big"))
        elif MMIO_DMA <= offset < MMIO_SIZE:
            self._fw_cfg.write_dma(offset - MMIO_DMA, data)

    def __repr__(self) -> str:
        return f"<FwCfgMmio of {self._fw_cfg!r}>"


def _item(content: bytes | Callable[[], bytes], on_write: Callable[[bytes], object] | None) -> Item:
    item = Item(content if callable(content) else bytes(content), on_write)
    if not callable(content):
        item.get()
    return item


def _done(access: Callable[[], object]) -> bool:
    """Say whether an access to guest memory succeeded; one that did not is the guest's mistake, and its error bit."""
    try:
        access()
    except Exception:  # noqa: BLE001 - memory of any make says in its own way that an address is wrong
        return False
    return True
