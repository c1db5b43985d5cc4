"""What both transports share: status, features and the registers of the selected queue."""

from __future__ import annotations

from pyvmm_device.errors import DeviceStateError
from pyvmm_device.state import PART, load_fields, save_fields, uint
from pyvmm_device.tally import Tally
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.errors import QueueConfigError
from pyvmm_virtio.features import mask
from pyvmm_virtio.mailbox import Mailbox
from pyvmm_virtio.queue.base import combine
from pyvmm_virtio.transport import status as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pyvmm_device.state import Kind
    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.memory import MemorySource
    from pyvmm_virtio.queue.protocol import Queue

REGISTERS = {
    "status": uint(8),
    "device_select": uint(32),
    "driver_select": uint(32),
    "queue_select": uint(32),
    "accepted": uint(64),
}


MAX_WAITING = 256
"""Writes of other processors that may wait for the one that is carried out; a driver has one or none."""


class NotifyAddress:
    """Where a driver writes to notify a queue: what a hypervisor turns into an eventfd without leaving the guest.

    Attributes:
        queue: the queue's number.
        offset: of the register, from the base of the MMIO range or of the BAR.
        length: of the write, in bytes; 0 is any.
        datamatch: the value that is written, or None where any is.
    """

    __slots__ = ("datamatch", "length", "offset", "queue")

    def __init__(self, queue: int, offset: int, length: int, datamatch: int | None) -> None:
        self.queue = queue
        self.offset = offset
        self.length = length
        self.datamatch = datamatch

    def __repr__(self) -> str:
        return f"NotifyAddress({self.queue}, {self.offset:#x}, {self.length}, {self.datamatch})"


class Control(Mailbox):
    """The state machine behind the registers of a transport.

    Writes are calls that are carried out one after another, with no lock held (`mailbox`): one that resets the device
    may take a moment, and other processors that access registers do not wait for it. Reads are of what is there now.

    A reset that is not over when its write returns leaves the registers as they are, the status included, until the
    device is done; whoever looks first after that makes them as they are after a reset (`catch_up`).

    Args:
        device: what is driven.
        memory: guest memory, or a cell that holds the current one.
        interrupt: how the device reaches the driver.
        iommu: whether addresses are translated on their way; ACCESS_PLATFORM is offered then, and insisted on.

    Attributes:
        ignored: how often the driver did what it must not and nothing came of it, by what it was.
        on_forget: set by the transport: called when a reset is over, for what is its own.
    """

    __slots__ = (
        "_ending",
        "accepted",
        "device",
        "device_select",
        "driver_select",
        "ignored",
        "interrupt",
        "on_forget",
        "queue_select",
        "status",
    )

    def __init__(self, device: VirtioDevice, memory: MemorySource, interrupt: VirtioInterrupt, *, iommu: bool) -> None:
        super().__init__()
        self.device = device
        self.on_forget: Callable[[], object] = _nothing
        self._ending = False  # a reset has begun, and the registers do not know that it is over
        self.interrupt = interrupt
        self.ignored = Tally(__name__)
        if iommu:
            device.device_features |= mask(f.VIRTIO_F_ACCESS_PLATFORM)
        device.attach(memory)
        self._forget()

    def _forget(self) -> None:
        self.status = 0
        self.device_select = self.driver_select = self.queue_select = 0
        self.accepted = 0

    def ignore(self, what: str, details: str = "") -> None:
        """Count something a driver must not do, and log it with details the first time."""
        self.ignored.count(what, "%r: ignored from now on: %s %s", self.device, what, details)

    def write(self, writer: Callable[..., object], *values: object) -> None:
        """Have a driver's write carried out: now, or after what is under way."""
        if self.sit():
            try:
                if self.calls:
                    self.make_waiting()
                self._carry_out(writer, values)
            finally:
                self.leave()
        elif len(self.calls) < MAX_WAITING:
            # bytes are copied, for the processor goes on while another one is at it
            kept = tuple(memoryview(bytes(value)) if isinstance(value, memoryview) else value for value in values)
            self.call(self._carry_out, writer, kept)
        else:
            self.ignore("more writes at once than there are processors")

    def _carry_out(self, writer: Callable[..., object], values: tuple[object, ...]) -> None:
        if self._ending:
            self.catch_up()
        try:
            writer(*values)
        except Exception:  # noqa: BLE001 - this is the thread of a vCPU, and a device's own end in its `fail`
            from traceback import format_exc

            # as text: the frames hold views of guest memory
            self.ignore("a write that fails", format_exc())

    # status

    def read_status(self) -> int:
        """Return the status, with DEVICE_NEEDS_RESET where the device says so."""
        if self._ending:
            self.catch_up()
        return self.status | s.NEEDS_RESET if self.device.needs_reset else self.status

    def write_status(self, written: int) -> None:
        """Take a step, or reset."""
        if not written:
            self.reset()
            return
        if self._ending:
            # 2.4.2: "The driver SHOULD consider a driver-initiated reset complete when it reads device status as 0"
            self.ignore("a step before the reset is over")
            return
        gates = {"features": self._features_ok, "start": self._driver_ok}
        self.status, wrong = s.advance(self.status, written & ~s.NEEDS_RESET, gates)
        if wrong is not None:
            self.ignore(wrong)

    def _features_ok(self) -> bool:
        reason = self.device.negotiate(self.accepted)
        if reason is not None:
            self.ignore("features that are refused", reason)
        return reason is None

    def _driver_ok(self) -> bool:
        try:
            self.device.start(self.interrupt)
        except Exception as error:  # noqa: BLE001 - a subclass has written it, and this is the thread of a vCPU
            self.ignore("a device that does not start", repr(error))
            self.device.fail(error)
            return False
        return True

    def reset(self) -> None:
        """Reset everything; when the status is 0 the device is done with guest memory."""
        self.device.driver_reset()
        with self.lock:
            self._ending = True
        self.catch_up()

    def catch_up(self) -> None:
        """Take notice of a reset that is over."""
        if not self._ending or self.device.resetting:
            return
        with self.lock:
            if not self._ending:
                return  # somebody else has, and the driver may have gone on since
            self._ending = False
            self._forget()
        self.on_forget()

    # features

    def read_device_features(self) -> int:
        """Return the 32 bits of what is offered that the driver selected; from bit 64 on there are none."""
        return self.device.device_features >> 32 * self.device_select & 0xFFFFFFFF if self.device_select < 2 else 0

    def read_driver_features(self) -> int:
        """Return the 32 bits of what the driver accepted."""
        return self.accepted >> 32 * self.driver_select & 0xFFFFFFFF if self.driver_select < 2 else 0

    def write_driver_features(self, value: int) -> None:
        """Note 32 bits of what the driver accepts."""
        if self.status & (s.DRIVER | s.FEATURES_OK | s.FAILED) != s.DRIVER:
            self.ignore("features written outside of negotiation")
        elif self.driver_select < 2:
            shift = 32 * self.driver_select
            self.accepted = self.accepted & ~(0xFFFFFFFF << shift) | value << shift
        elif value:
            self.ignore("features written that do not exist")

    # the selected queue

    def queue(self) -> Queue | None:
        """Return the queue that the driver selected, if there is one."""
        queues = self.device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def settable(self) -> Queue | None:
        """Return the queue that the driver selected, if it may be changed now."""
        queue = self.queue()
        if queue is None:
            self.ignore("a queue is set up that does not exist")
        elif self.status & (s.FEATURES_OK | s.FAILED) != s.FEATURES_OK:
            self.ignore("a queue is set up before FEATURES_OK or after FAILED")
        elif self.queue_resetting():
            self.ignore("a queue is set up while it is reset")
        elif queue.ready():
            # 4.2.2.2: "When QueueReady is not zero, the driver MUST NOT access" the others
            self.ignore("a queue is set up while it is enabled")
        else:
            return queue
        return None

    def queue_size(self) -> int:
        """Return the size of the selected queue, 0 where there is none."""
        queue = self.queue()
        return queue.size() if queue is not None else 0

    def set_queue_size(self, size: int) -> None:
        """Choose the size of the selected queue."""
        queue = self.settable()
        if queue is not None:
            self._try(queue.try_set_size, size)

    def set_queue_address(self, area: str, low: int | None, high: int | None) -> None:
        """Say where an area of the selected queue is: "desc_table", "avail_ring" or "used_ring"."""
        queue = self.settable()
        if queue is not None:
            addr = combine(getattr(queue, area)(), low, high)
            self._try(getattr(queue, f"try_set_{area}_address"), addr)

    def select_writer(self, name: str) -> Callable[[int], object]:
        """Return what takes a write to a register that selects: a half of the features, or a queue."""
        return lambda value: setattr(self, name, value)

    def address_writer(self, area: str, *, high: bool) -> Callable[[int], object]:
        """Return what takes a write to half of the address of an area of the selected queue."""
        if high:
            return lambda value: self.set_queue_address(area, None, value)
        return lambda value: self.set_queue_address(area, value, None)

    def _try(self, setter: Callable[[int], None], value: int) -> None:
        try:
            setter(value)
        except QueueConfigError as error:
            self.ignore("a queue is given a size or an address it cannot have", str(error))

    def queue_ready(self) -> bool:
        """Say whether the selected queue is enabled."""
        queue = self.queue()
        return queue is not None and queue.ready() and not self.queue_resetting()

    def queue_resetting(self) -> bool:
        """Say whether a reset of the selected queue has begun and is not over."""
        return self.queue_select in self.device.dispatch.resetting_queues

    def enable_queue(self) -> None:
        """Enable the selected queue."""
        queue = self.settable()
        if queue is None:
            return
        if self.status & s.DRIVER_OK and not self.device.negotiated(f.VIRTIO_F_RING_RESET):
            self.ignore("a queue is enabled after DRIVER_OK, without RING_RESET")
            return
        self.device.enable_queue(self.queue_select)

    def reset_queue(self) -> None:
        """Reset the selected queue; when it is not `queue_resetting` any more the device is done with its buffers."""
        if self.queue() is None or not self.status & s.FEATURES_OK:
            self.ignore("a queue is reset that does not exist, or before FEATURES_OK")
        else:
            self.device.driver_queue_reset(self.queue_select)

    # the configuration space

    def write_config(self, offset: int, data: memoryview) -> None:
        """Let the driver write to the device's configuration space, where it may."""
        early = offset in self.device.early_config
        if self.status & (s.DRIVER | s.FAILED) != s.DRIVER and not early:
            self.ignore("the configuration is written before DRIVER or after FAILED")
        else:
            self.device.driver_write_config(offset, data)

    # state

    def state(self) -> dict[str, Any]:
        """Return the registers and the device. Raises DeviceBusy."""
        self.catch_up()
        return self.ask(lambda: {**save_fields(self, REGISTERS), "virtio": self.device.state()})

    def check_state(
        self, name: str, own: Mapping[str, Kind], state: object, *, version: int | None = None
    ) -> dict[str, Any]:
        """Return the fields of a transport's state, each checked: the registers, the device, and what is its own.

        Args:
            name: of the transport.
            own: the kind of each field that is not here, by its name.
            state: what was saved, or claims to be.
            version: as `load_fields` takes it.

        Raises:
            DeviceStateError: it is no such state.
        """
        from pyvmm_virtio.state import check

        fields = load_fields(name, {**REGISTERS, "virtio": PART, **own}, state, version=version, others=())
        device = check(self.device, fields["virtio"])
        if device["active"] and not fields["status"] & s.DRIVER_OK:
            raise DeviceStateError(name, "its device is active, and no driver is")
        return fields

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Become what a state says, of which `check_state` made the fields. Raises DeviceStateError, DeviceBusy."""
        self.ask(self._restore, fields)

    def _restore(self, fields: Mapping[str, Any]) -> None:
        self.device.restore(fields["virtio"], self.interrupt)
        self._ending = False
        for name in REGISTERS:
            setattr(self, name, fields[name])


def _nothing() -> None:
    pass
